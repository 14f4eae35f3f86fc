#pragma once

#include <string>

#include <nlohmann/json.hpp>

#include "engine/base/result.h"
#include "engine/text/tokenizer_spec.h"

namespace thaw::text {

/// The parts of tokenizer.json beside its model and its added tokens; null where it has none.
struct HfPipeline {
  nlohmann::json normalizer;
  nlohmann::json pre_tokenizer;
  nlohmann::json decoder;
  nlohmann::json post_processor;
};

/// kUnsupported, for what tokenizer.json has and this does not do.
inline Error unsupported_tokenizer_json(const std::string& what) {
  return make_error(Errc::kUnsupported, "tokenizer.json: " + what);
}

/// Sets what the first three say: style, splits, prefix, start of a decode. Regular expressions
/// that a rule of our own stands for become its name. Errors: kUnsupported, naming the construct.
Result<void> apply_text_pipeline(const HfPipeline& pipeline, TokenizerSpec& spec);

/// Sets bos and add_bos, and add_eos, from what the post-processor puts around one text.
Result<void> apply_post_processor(const nlohmann::json& post_processor, TokenizerSpec& spec);

}  // namespace thaw::text
