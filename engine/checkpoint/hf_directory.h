#pragma once

#include <optional>
#include <string>

#include "engine/base/result.h"

namespace thaw::checkpoint {

/// A chat template and the file that holds it.
struct StoredTemplate {
  std::string source;
  std::string file;  ///< "chat_template.jinja", ...
  std::string tool_source;  ///< of the one called tool_use, for requests with tools; empty: none
};

/// The texts beside the weights of a Hugging Face directory, as they stand.
struct HfDirectory {
  std::string path;
  std::string config;
  // Empty where there is no such file.
  std::string generation_config;
  std::string tokenizer;
  std::string tokenizer_config;
  std::string special_tokens_map;
  std::optional<StoredTemplate> chat_template;
};

/// Reads a directory's texts. The chat template is chat_template.jinja (with
/// additional_chat_templates/tool_use.jinja), else tokenizer_config.json's chat_template (text, or
/// a list of named ones: those called "default" and "tool_use"), else chat_template.json's. Errors
/// name the file: config.json is missing; too large; a chat template where nothing can be made of
/// the JSON around it.
Result<HfDirectory> read_hf_directory(const std::string& path);

}  // namespace thaw::checkpoint
