#pragma once

#include <memory>
#include <optional>
#include <string>

#include "engine/base/result.h"
#include "engine/checkpoint/gguf.h"
#include "engine/checkpoint/stored_tensor.h"
#include "engine/model/config.h"

namespace thaw::model {

/// Whose names a checkpoint's tensors carry.
enum class TensorNaming { kGguf, kHuggingFace };

/// What a checkpoint proposes for requests that leave it out (generation_config.json, GGUF's
/// general.sampling.*). Nothing where it proposes nothing, or a value that makes no sense.
struct GenerationDefaults {
  std::optional<bool> do_sample;
  std::optional<float> temperature;
  std::optional<float> top_p;
  std::optional<int> top_k;  ///< 0: no limit
  std::optional<float> min_p;
  std::optional<float> repetition_penalty;
};

/// A checkpoint understood: what it computes and where its tensors are, whichever files hold them.
struct ModelSource {
  std::shared_ptr<const checkpoint::TensorSource> tensors;
  TensorNaming naming = TensorNaming::kGguf;
  ModelConfig config;
  GenerationDefaults generation;
};

/// Reads a GGUF file's configuration; `tensors` are those of all parts of a split one. Errors name
/// the file and the architecture, key, RoPE kind or feature that is not supported, and those that
/// are.
Result<ModelSource> model_source_from_gguf(const checkpoint::GgufFile& metadata,
                                           std::shared_ptr<const checkpoint::TensorSource> tensors);
/// The same for a GGUF file that holds everything.
Result<ModelSource> model_source_from_gguf(std::shared_ptr<const checkpoint::GgufFile> file);

/// Reads the texts of a Hugging Face directory's config.json and generation_config.json (empty
/// where there is none). Errors as above; kDataLoss where a text is not JSON or a key is missing.
Result<ModelSource> model_source_from_hf(std::shared_ptr<const checkpoint::TensorSource> tensors,
                                         const std::string& config_json,
                                         const std::string& generation_config_json);

}  // namespace thaw::model
