#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/result.h"
#include "engine/text/hf_tokenizer.h"

namespace thaw::text {

/// A token beside the model's vocabulary.
struct HfAddedToken {
  std::int64_t id = -1;
  std::string content;
  bool special = false;
  bool lstrip = false;
  bool rstrip = false;
  bool single_word = false;
};

/// What tokenizer_config.json and special_tokens_map.json say about the tokenizer.
struct HfTokenizerConfig {
  std::optional<std::string> bos_token;
  std::optional<std::string> eos_token;
  std::optional<bool> add_bos_token;
  std::optional<bool> add_eos_token;
  std::vector<HfAddedToken> added_tokens;  ///< added_tokens_decoder
  std::optional<std::string> chat_template;
  std::vector<std::pair<std::string, std::string>> named_templates;
  std::string tokenizer_class;
};

/// Errors: kInvalidArgument for what is not JSON or a key of the wrong type, with its name.
Result<HfTokenizerConfig> read_hf_config(const HfTokenizerFiles& files);

}  // namespace thaw::text
