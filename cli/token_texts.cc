#include "cli/token_texts.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "cli/model_source.h"
#include "cli/model_text.h"
#include "cli/weights_file.h"
#include "engine/checkpoint/model_location.h"
#include "engine/checkpoint/text_file.h"
#include "kvsnap/container_reader.h"

namespace thaw::cli {
namespace {

using Made = Result<std::unique_ptr<text::Tokenizer>>;

Made make_tokenizer(const std::string& path, Result<text::TokenizerSpec> spec) {
  if (!spec) return std::move(spec).error();
  auto made = text::Tokenizer::create(*std::move(spec));
  if (made) return made;
  Error error = std::move(made).error();
  error.message = path + ": " + error.message;
  return error;
}

/// Without config.json and weights, which a tokenizer does not need.
Made from_directory(const std::string& path) {
  checkpoint::HfDirectory directory;
  directory.path = path;
  auto tokenizer = checkpoint::read_text_file(path + "/tokenizer.json");
  if (!tokenizer) return std::move(tokenizer).error();
  directory.tokenizer = *std::move(tokenizer);
  for (const auto& [name, text] :
       {std::pair{"tokenizer_config.json", &checkpoint::HfDirectory::tokenizer_config},
        std::pair{"special_tokens_map.json", &checkpoint::HfDirectory::special_tokens_map}}) {
    auto read = checkpoint::read_text_file(path + "/" + name);
    if (read) directory.*text = *std::move(read);
  }
  return make_tokenizer(path, tokenizer_spec_from_hf(directory));
}

Made from_gguf(const checkpoint::GgufFile& file) {
  return make_tokenizer(file.path(), tokenizer_spec_from_gguf(file));
}

Made from_weights(kvsnap::FileIo& io, const std::string& path) {
  const auto reader = kvsnap::ContainerReader::open(io, path);
  if (!reader) return reader.error();
  ThreadPool threads(1);
  const auto read = read_weights_document(*reader, threads);
  if (!read) return read.error();
  const auto& found = *read;
  if (!found) return make_error(Errc::kNotFound, path + ": it has no metadata, so no tokenizer");
  const WeightsDocument& document = *found;
  if (document.container == "GGUF") {
    const auto file = checkpoint::GgufFile::open_metadata(path, document.gguf_metadata);
    if (!file) return file.error();
    return from_gguf(*file);
  }
  const auto text = [&](const char* name) {
    const auto found = document.texts.find(name);
    return found == document.texts.end() ? std::string() : found->second;
  };
  checkpoint::HfDirectory directory;
  directory.path = path;
  directory.tokenizer = text("tokenizer.json");
  directory.tokenizer_config = text("tokenizer_config.json");
  directory.special_tokens_map = text("special_tokens_map.json");
  return make_tokenizer(path, tokenizer_spec_from_hf(directory));
}

/// "org/name" and no path: what a file says must not make us open another one.
bool is_hub_name(const std::string& name) {
  const auto is_plain = [](std::string_view part) {
    return !part.empty() && part.front() != '.' && std::ranges::all_of(part, [](char c) {
      return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '-' || c == '_' || c == '.';
    });
  };
  const std::size_t slash = name.find('/');
  return slash != std::string::npos && is_plain(std::string_view(name).substr(0, slash)) &&
         is_plain(std::string_view(name).substr(slash + 1));
}

}  // namespace

Made open_tokenizer(const std::string& model, const ModelPaths& paths) {
  std::error_code ignored;
  if (std::filesystem::exists(model + "/tokenizer.json", ignored)) return from_directory(model);
  const auto location = checkpoint::locate_model(model, paths.hub_cache);
  if (!location) return location.error();
  switch (location->kind) {
    case checkpoint::ModelKind::kHuggingFace:
      return from_directory(location->path);
    case checkpoint::ModelKind::kThaw:
      return from_weights(kvsnap::system_io(kvsnap::IoMode::kBuffered), location->path);
    case checkpoint::ModelKind::kGguf:
      break;
  }
  const auto file = checkpoint::GgufFile::open(location->path);
  if (!file) return file.error();
  return from_gguf(*file);
}

std::unique_ptr<text::Tokenizer> find_tokenizer(const kvsnap::HandleDirectory& directory,
                                                const ModelPaths& paths) {
  if (directory.weights_bytes() > 0) {
    auto made = from_weights(kvsnap::system_io(kvsnap::IoMode::kNoLinks),
                             directory.path() + "/" + kvsnap::kWeightsFile);
    if (made) return *std::move(made);
  }
  const std::string& model = directory.handle().model_id;
  std::error_code ignored;
  if (!is_hub_name(model) || std::filesystem::exists(model, ignored)) return nullptr;
  auto made = open_tokenizer(model, paths);
  return made ? *std::move(made) : nullptr;
}

std::string decode_inside(const text::Tokenizer& tokenizer, std::span<const TokenId> tokens) {
  return tokenizer.decode(tokens, true, text::DecodeAs::kContinuation);
}

}  // namespace thaw::cli
