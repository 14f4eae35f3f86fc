#include "cli/model_loader.h"

#include <algorithm>
#include <filesystem>
#include <future>
#include <utility>

#include "cli/model_source.h"
#include "engine/base/thread_pool.h"
#include "engine/checkpoint/safetensors.h"

namespace thaw::cli {
namespace {

/// The tokenizer's own end tokens end a text too: many generation configs name only one of them.
void add_end_tokens(const std::vector<TokenId>& more, std::vector<TokenId>& ids) {
  for (const TokenId id : more)
    if (std::ranges::find(ids, id) == ids.end()) ids.push_back(id);
  std::ranges::sort(ids);
}

// By pointer: GCC 12 warns of what std::async's machinery would do with the result itself.
std::unique_ptr<Result<ModelText>> make_text(const std::string& path, const TextSource& source) {
  return std::make_unique<Result<ModelText>>(make_model_text(path, source));
}

}  // namespace

Result<ModelLoader> ModelLoader::open(const std::string& model, const ModelPaths& paths) {
  if (model.empty() && !std::filesystem::exists(paths.default_model)) {
    return make_error(Errc::kNotFound, "no model given, and the default one is not at " +
                                           paths.default_model +
                                           "; fetch it with `make model`, or name a model");
  }
  auto location =
      checkpoint::locate_model(model.empty() ? paths.default_model : model, paths.hub_cache);
  if (!location) return std::move(location).error();
  ModelLoader loader;
  loader.location_ = *std::move(location);
  const auto opened =
      loader.location_.kind == checkpoint::ModelKind::kGguf ? loader.open_gguf() : loader.open_hf();
  if (!opened) return opened.error();
  return loader;
}

Result<void> ModelLoader::open_gguf() {
  auto opened = checkpoint::GgufFile::open(location_.path);
  if (!opened) return std::move(opened).error();
  const auto file = std::make_shared<const checkpoint::GgufFile>(*std::move(opened));
  auto source = model::model_source_from_gguf(file);
  if (!source) return std::move(source).error();
  source_ = *std::move(source);
  auto tokenizer = tokenizer_spec_from_gguf(*file);
  if (!tokenizer) return std::move(tokenizer).error();
  text_ = std::make_shared<const TextSource>(
      TextSource{*std::move(tokenizer), stored_template_from_gguf(*file)});
  return {};
}

Result<void> ModelLoader::open_hf() {
  const auto directory = checkpoint::read_hf_directory(location_.path);
  if (!directory) return directory.error();
  auto tensors = checkpoint::SafetensorsFiles::open(location_.path);
  if (!tensors) return std::move(tensors).error();
  auto source = model::model_source_from_hf(
      std::make_shared<const checkpoint::SafetensorsFiles>(*std::move(tensors)), directory->config,
      directory->generation_config);
  if (!source) return std::move(source).error();
  source_ = *std::move(source);
  auto tokenizer = tokenizer_spec_from_hf(*directory);
  if (!tokenizer) return std::move(tokenizer).error();
  add_end_tokens(tokenizer->eos, source_.config.eos_token_ids);
  text_ = std::make_shared<const TextSource>(
      TextSource{*std::move(tokenizer), directory->chat_template});
  return {};
}

std::uint64_t ModelLoader::estimated_weight_bytes(const ops::PackingOptions& packing) const {
  std::uint64_t bytes = 0;
  for (const checkpoint::StoredTensor& tensor : source_.tensors->tensors()) {
    const ops::Packing chosen = tensor.rows() == 1
                                    ? ops::Packing::kVectorF32
                                    : ops::choose_packing(tensor.dtype, tensor.cols(), packing);
    bytes += ops::packed_bytes(chosen, tensor.rows(), tensor.cols());
  }
  return bytes;
}

Result<LoadedModel> ModelLoader::load(const ops::PackingOptions& packing, int num_threads,
                                      model::ImageCache& images) const {
  auto making_text = std::async(std::launch::async, make_text, location_.path, std::cref(*text_));
  ThreadPool packers(num_threads);
  auto image = images.load(source_, packing, packers);
  auto text = making_text.get();
  if (!image) return std::move(image).error();
  if (!*text) return std::move(*text).error();
  return LoadedModel{*std::move(image), *std::move(*text)};
}

}  // namespace thaw::cli
