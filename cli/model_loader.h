#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "engine/base/result.h"
#include "engine/checkpoint/gguf.h"
#include "engine/model/load.h"
#include "engine/text/chat_template.h"
#include "engine/text/tokenizer.h"

namespace thaw::cli {

/// What turns text into tokens and back.
struct ModelText {
  std::unique_ptr<text::Tokenizer> tokenizer;
  std::unique_ptr<text::ChatTemplate> chat_template;  ///< null: the model has none
};

/// A model ready to be served.
struct LoadedModel {
  model::LoadedImage image;
  ModelText text;
};

/// A model's files: found, opened and mapped, nothing computed yet. Errors everywhere are the
/// user's to read: one line that names the file.
class ModelLoader {
 public:
  /// `model`: path of a GGUF file; empty: the default model.
  static Result<ModelLoader> open(const std::string& model);

  const std::string& path() const { return path_; }
  /// How clients may call it: the file's name without its extension.
  std::string name() const;
  /// What the packed weights take, about: the exact figure is known once they are packed.
  /// `dtype` as in ServeSettings.
  std::uint64_t estimated_weight_bytes(const std::string& dtype) const;

  /// Packs the weights with `num_threads` threads and reads tokenizer and template meanwhile.
  Result<LoadedModel> load(const std::string& dtype, int num_threads) const;

 private:
  explicit ModelLoader(checkpoint::GgufFile file)
      : path_(file.path()), file_(std::make_shared<const checkpoint::GgufFile>(std::move(file))) {}

  std::string path_;
  std::shared_ptr<const checkpoint::GgufFile> file_;
};

}  // namespace thaw::cli
