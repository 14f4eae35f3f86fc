#pragma once

#include <memory>
#include <optional>
#include <string>

#include "engine/base/result.h"
#include "engine/checkpoint/gguf.h"
#include "engine/checkpoint/hf_directory.h"
#include "engine/text/chat_template.h"
#include "engine/text/tokenizer.h"

namespace thaw::cli {

/// What turns text into tokens and back.
struct ModelText {
  std::unique_ptr<text::Tokenizer> tokenizer;
  std::unique_ptr<text::ChatTemplate> chat_template;  ///< null: the model has none
};

/// The texts of a checkpoint, not parsed yet: what tokenizer and template are made from.
struct TextSource {
  text::TokenizerSpec tokenizer;
  std::optional<checkpoint::StoredTemplate> chat_template;
};

/// Errors name the file, and the key or construct that is missing or not supported.
Result<text::TokenizerSpec> tokenizer_spec_from_hf(const checkpoint::HfDirectory& directory);

/// The template's file is "tokenizer.chat_template", the key; tokenizer.chat_template.tool_use,
/// where there is one, is for requests with tools.
std::optional<checkpoint::StoredTemplate> stored_template_from_gguf(
    const checkpoint::GgufFile& file);

/// A template that the user gives in place of the model's own, for every request. Errors: the file
/// cannot be read, or is larger than 1 MiB.
Result<checkpoint::StoredTemplate> read_template_file(const std::string& path);

/// What tells templates apart, in hex.
std::string hash_template(const checkpoint::StoredTemplate& stored);

/// Makes tokenizer and template; slow for large vocabularies. `path` is named in errors.
Result<ModelText> make_model_text(const std::string& path, TextSource source);

}  // namespace thaw::cli
