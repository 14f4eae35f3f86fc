#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "cli/model_paths.h"
#include "cli/model_text.h"
#include "cli/weights_document.h"
#include "cli/weights_file.h"
#include "engine/base/result.h"
#include "engine/checkpoint/gguf.h"
#include "engine/checkpoint/hf_directory.h"
#include "engine/checkpoint/model_location.h"
#include "engine/model/image_cache.h"
#include "engine/model/load.h"
#include "engine/model/source.h"

namespace thaw::cli {

/// A model ready to be served.
struct LoadedModel {
  model::LoadedImage image;
  ModelText text;
};

/// A model's files: found, opened and mapped, nothing computed yet. Errors everywhere are the
/// user's to read: one line that names the file.
class ModelLoader {
 public:
  /// `model` as locate_model() takes it; empty: the default model.
  static Result<ModelLoader> open(const std::string& model, const ModelPaths& paths);

  /// A .thaw file. `model` names it for clients, and where it is found on this machine, it must be
  /// the model that was frozen; empty: the name that it was frozen under. A file of the public
  /// project does not say which weights it holds: `model` must then be a directory of Hugging
  /// Face's files, or org/name in the local cache, which says it; its own weights are not read.
  static Result<ModelLoader> open_snapshot(const std::string& snapshot, const std::string& model,
                                           const ModelPaths& paths, kvsnap::Verify checks);

  /// From now on this one in place of the model's own, for every request.
  void use_chat_template(checkpoint::StoredTemplate chat_template);

  const std::string& path() const { return location_.path; }
  /// How clients may call it: "org/name", or the name of the directory or file.
  const std::string& name() const { return location_.name; }
  const model::ModelSource& source() const { return source_; }
  /// What a .thaw file of this model says of it, but for writer, tensors, digests and shards.
  Result<WeightsDocument> describe() const;
  /// What the packed weights take, about: the exact figure is known once they are packed.
  std::uint64_t estimated_weight_bytes(const ops::PackingOptions& packing) const;

  /// Takes the weights from `images`, where they are packed with `num_threads` threads if they have
  /// to be, and makes tokenizer and template meanwhile. REQUIRES: `images` is older than this.
  Result<LoadedModel> load(const ops::PackingOptions& packing, int num_threads,
                           model::ImageCache& images) const;

 private:
  ModelLoader() = default;
  Result<void> open_gguf();
  Result<void> open_hf();
  Result<void> open_thaw(kvsnap::Verify checks);
  Result<void> open_public(kvsnap::ContainerReader reader, const std::string& model,
                           const ModelPaths& paths, kvsnap::Verify checks);
  Result<void> use_gguf(const checkpoint::GgufFile& metadata,
                        std::shared_ptr<const checkpoint::TensorSource> tensors);
  Result<void> use_hf(const checkpoint::HfDirectory& directory,
                      std::shared_ptr<const checkpoint::TensorSource> tensors);

  checkpoint::ModelLocation location_;
  std::shared_ptr<const TextSource> text_;
  model::ModelSource source_;
};

}  // namespace thaw::cli
