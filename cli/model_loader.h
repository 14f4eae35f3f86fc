#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "cli/model_paths.h"
#include "cli/model_text.h"
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

  const std::string& path() const { return location_.path; }
  /// How clients may call it: "org/name", or the name of the directory or file.
  const std::string& name() const { return location_.name; }
  const model::ModelSource& source() const { return source_; }
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

  checkpoint::ModelLocation location_;
  std::shared_ptr<const TextSource> text_;
  model::ModelSource source_;
};

}  // namespace thaw::cli
