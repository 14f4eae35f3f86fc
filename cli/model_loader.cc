#include "cli/model_loader.h"

#include <filesystem>
#include <future>
#include <utility>

#include "cli/model_source.h"
#include "engine/base/thread_pool.h"
#include "engine/model/source.h"

namespace thaw::cli {
namespace {

Result<ModelText> load_text(const checkpoint::GgufFile& file) {
  auto spec = tokenizer_spec_from_gguf(file);
  if (!spec) return spec.error();
  auto tokenizer = text::Tokenizer::create(std::move(*spec));
  if (!tokenizer) return tokenizer.error();
  ModelText parts;
  parts.tokenizer = std::move(*tokenizer);
  if (const auto source = chat_template_from_gguf(file)) {
    auto parsed = text::ChatTemplate::parse(std::string(*source));
    if (!parsed) return parsed.error();
    parts.chat_template = std::move(*parsed);
  }
  return parts;
}

}  // namespace

Result<ModelLoader> ModelLoader::open(const std::string& model) {
  const std::string path = model.empty() ? default_model_path() : model;
  if (model.empty() && !std::filesystem::exists(path)) {
    return make_error(Errc::kNotFound, "no model given, and the default one is not at " + path +
                                           "; fetch it with `make model`, or name a GGUF file");
  }
  auto file = checkpoint::GgufFile::open(path);
  if (!file) return std::move(file).error();
  return ModelLoader(*std::move(file));
}

std::string ModelLoader::name() const {
  return std::filesystem::path(path_).stem().string();
}

std::uint64_t ModelLoader::estimated_weight_bytes(const std::string& dtype) const {
  std::error_code error;
  const std::uint64_t file_bytes = std::filesystem::file_size(path_, error);
  return file_bytes * (dtype == "f32" ? 6 : 1);
}

Result<LoadedModel> ModelLoader::load(const std::string& dtype, int num_threads) const {
  const auto source = model::model_source_from_gguf(file_);
  if (!source) return source.error();
  auto text_parts = std::async(std::launch::async, [this] { return load_text(*file_); });
  ThreadPool packers(num_threads);
  auto image = model::build_image(
      *source, dtype == "f32" ? ops::ComputeMode::kExact32 : ops::ComputeMode::kNative, packers);
  auto text = text_parts.get();
  if (!image) return std::move(image).error();
  if (!text) return std::move(text).error();
  return LoadedModel{*std::move(image), *std::move(text)};
}

}  // namespace thaw::cli
