#include "cli/model_text.h"

#include <utility>

#include "cli/model_source.h"
#include "engine/base/hash.h"
#include "engine/checkpoint/text_file.h"
#include "engine/text/hf_tokenizer.h"

namespace thaw::cli {
namespace {

constexpr std::size_t kMaxTemplateBytes = std::size_t{1} << 20;

Error with_path(const std::string& path, Error error) {
  error.message = path + ": " + error.message;
  return error;
}

}  // namespace

Result<text::TokenizerSpec> tokenizer_spec_from_hf(const checkpoint::HfDirectory& directory) {
  if (directory.tokenizer.empty()) {
    return make_error(Errc::kNotFound,
                      directory.path +
                          "/tokenizer.json is missing; transformers' save_pretrained() of the "
                          "model's fast tokenizer writes it");
  }
  // The chat template is the directory's business: see read_hf_directory().
  auto read = text::read_hf_tokenizer(
      {directory.tokenizer, directory.tokenizer_config, directory.special_tokens_map, "-"});
  if (!read) return with_path(directory.path, std::move(read).error());
  return std::move(read->spec);
}

std::optional<checkpoint::StoredTemplate> stored_template_from_gguf(
    const checkpoint::GgufFile& file) {
  const auto source = chat_template_from_gguf(file);
  if (!source) return std::nullopt;
  return checkpoint::StoredTemplate{
      std::string(*source), "tokenizer.chat_template",
      std::string(file.get_string("tokenizer.chat_template.tool_use").value_or(""))};
}

Result<checkpoint::StoredTemplate> read_template_file(const std::string& path) {
  auto source = checkpoint::read_text_file(path, kMaxTemplateBytes);
  if (!source) return std::move(source).error();
  return checkpoint::StoredTemplate{*std::move(source), path, ""};
}

std::string hash_template(const checkpoint::StoredTemplate& stored) {
  if (stored.tool_source.empty()) return hash_text(stored.source).to_hex();
  return hash_text(stored.source + '\0' + stored.tool_source).to_hex();
}

Result<ModelText> make_model_text(const std::string& path, TextSource source) {
  auto tokenizer = text::Tokenizer::create(std::move(source.tokenizer));
  if (!tokenizer) return with_path(path, std::move(tokenizer).error());
  ModelText text;
  text.tokenizer = std::move(*tokenizer);
  if (!source.chat_template) return text;
  auto parsed =
      text::ChatTemplate::parse(source.chat_template->source, source.chat_template->tool_source);
  if (!parsed)
    return with_path(path + ": " + source.chat_template->file, std::move(parsed).error());
  text.chat_template = std::move(*parsed);
  return text;
}

}  // namespace thaw::cli
