#include "cli/model_loader.h"

#include <algorithm>
#include <filesystem>
#include <future>
#include <utility>

#include "cli/freeze_weights.h"
#include "cli/model_source.h"
#include "cli/public_weights.h"
#include "cli/served_model.h"
#include "engine/base/hash.h"
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

constexpr const char* kGgufContainer = "GGUF";
constexpr const char* kHfContainer = "safetensors";

/// The files of a directory that go along with weights.
constexpr std::pair<const char*, std::string checkpoint::HfDirectory::*> kHfTexts[] = {
    {"config.json", &checkpoint::HfDirectory::config},
    {"generation_config.json", &checkpoint::HfDirectory::generation_config},
    {"tokenizer.json", &checkpoint::HfDirectory::tokenizer},
    {"tokenizer_config.json", &checkpoint::HfDirectory::tokenizer_config},
    {"special_tokens_map.json", &checkpoint::HfDirectory::special_tokens_map}};

void set_hf_texts(checkpoint::HfDirectory directory, WeightsDocument& document) {
  for (const auto& [name, text] : kHfTexts)
    if (!(directory.*text).empty()) document.texts[name] = std::move(directory.*text);
  document.chat_template = std::move(directory.chat_template);
}

checkpoint::HfDirectory hf_directory_of(const WeightsDocument& document, const std::string& path) {
  checkpoint::HfDirectory directory;
  directory.path = path;
  for (const auto& [name, text] : kHfTexts)
    if (const auto found = document.texts.find(name); found != document.texts.end())
      directory.*text = found->second;
  directory.chat_template = document.chat_template;
  return directory;
}

/// Says where a configuration comes from, before there are tensors.
class NoTensors final : public checkpoint::TensorSource {
 public:
  explicit NoTensors(std::string path) : path_(std::move(path)) {}
  const std::string& path() const override { return path_; }
  const std::vector<checkpoint::StoredTensor>& tensors() const override { return tensors_; }
  const checkpoint::StoredTensor* find_tensor(std::string_view) const override { return nullptr; }
  Hash128 digest() const override { return {}; }

 private:
  std::string path_;
  std::vector<checkpoint::StoredTensor> tensors_;
};

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
  const auto opened = [&] {
    switch (loader.location_.kind) {
      case checkpoint::ModelKind::kGguf:
        return loader.open_gguf();
      case checkpoint::ModelKind::kHuggingFace:
        return loader.open_hf();
      case checkpoint::ModelKind::kThaw:
        break;
    }
    return loader.open_thaw(kvsnap::Verify::kChecksums);
  }();
  if (!opened) return opened.error();
  return loader;
}

Result<ModelLoader> ModelLoader::open_snapshot(const std::string& snapshot,
                                               const std::string& model, const ModelPaths& paths,
                                               kvsnap::Verify checks) {
  ModelLoader loader;
  loader.location_ = {checkpoint::ModelKind::kThaw, snapshot, ""};
  auto reader =
      kvsnap::ContainerReader::open(kvsnap::system_io(kvsnap::IoMode::kBuffered), snapshot);
  if (reader && !model.empty() && is_public_weights(*reader)) {
    auto opened = loader.open_public(*std::move(reader), model, paths, checks);
    if (!opened) return std::move(opened).error();
    return loader;
  }
  if (auto opened = loader.open_thaw(checks); !opened) return std::move(opened).error();
  if (model.empty()) return loader;
  loader.location_.name = model;
  const auto located = checkpoint::locate_model(model, paths.hub_cache);
  if (!located) return loader;  // elsewhere: a name alone
  loader.location_.name = located->name;
  const auto origin = open(model, paths);
  if (origin && origin->source_.config.to_json() != loader.source_.config.to_json()) {
    return make_error(Errc::kInvalidArgument, snapshot + " was frozen from another model than " +
                                                  model + " is: a " + loader.source_.config.family +
                                                  " with " +
                                                  std::to_string(loader.source_.config.num_layers) +
                                                  " layers; leave --model out, or freeze this one");
  }
  return loader;
}

Result<void> ModelLoader::open_gguf() {
  auto opened = checkpoint::GgufFile::open(location_.path);
  if (!opened) return std::move(opened).error();
  const auto file = std::make_shared<const checkpoint::GgufFile>(*std::move(opened));
  return use_gguf(*file, file);
}

Result<void> ModelLoader::use_gguf(const checkpoint::GgufFile& metadata,
                                   std::shared_ptr<const checkpoint::TensorSource> tensors) {
  auto source = model::model_source_from_gguf(metadata, std::move(tensors));
  if (!source) return std::move(source).error();
  source_ = *std::move(source);
  auto tokenizer = tokenizer_spec_from_gguf(metadata);
  if (!tokenizer) return std::move(tokenizer).error();
  if (tokenizer->tokens.size() > static_cast<std::size_t>(source_.config.vocab_size)) {
    return make_error(Errc::kDataLoss, location_.path + ": " +
                                           std::to_string(tokenizer->tokens.size()) +
                                           " tokens, but the model embeds " +
                                           std::to_string(source_.config.vocab_size));
  }
  text_ = std::make_shared<const TextSource>(
      TextSource{*std::move(tokenizer), stored_template_from_gguf(metadata)});
  return {};
}

Result<void> ModelLoader::open_hf() {
  const auto directory = checkpoint::read_hf_directory(location_.path);
  if (!directory) return directory.error();
  auto tensors = checkpoint::SafetensorsFiles::open(location_.path);
  if (!tensors) return std::move(tensors).error();
  return use_hf(*directory,
                std::make_shared<const checkpoint::SafetensorsFiles>(*std::move(tensors)));
}

Result<void> ModelLoader::use_hf(const checkpoint::HfDirectory& directory,
                                 std::shared_ptr<const checkpoint::TensorSource> tensors) {
  auto source = model::model_source_from_hf(std::move(tensors), directory.config,
                                            directory.generation_config);
  if (!source) return std::move(source).error();
  source_ = *std::move(source);
  auto tokenizer = tokenizer_spec_from_hf(directory);
  if (!tokenizer) return std::move(tokenizer).error();
  add_end_tokens(tokenizer->eos, source_.config.eos_token_ids);
  text_ = std::make_shared<const TextSource>(
      TextSource{*std::move(tokenizer), directory.chat_template});
  return {};
}

Result<void> ModelLoader::open_thaw(kvsnap::Verify checks) {
  auto opened =
      WeightsFile::open(kvsnap::system_io(kvsnap::IoMode::kBuffered), location_.path, checks);
  if (!opened) return std::move(opened).error();
  const auto file = std::make_shared<const WeightsFile>(*std::move(opened));
  const WeightsDocument& document = file->document();
  if (!document.model.empty()) location_.name = document.model;
  if (document.container == kHfContainer)
    return use_hf(hf_directory_of(document, location_.path), file);
  const auto metadata = checkpoint::GgufFile::open_metadata(location_.path, document.gguf_metadata);
  if (!metadata) return metadata.error();
  return use_gguf(*metadata, file);
}

Result<void> ModelLoader::open_public(kvsnap::ContainerReader reader, const std::string& model,
                                      const ModelPaths& paths, kvsnap::Verify checks) {
  // Without its weights, a directory is no model that could be located, but it tells enough.
  std::string path = model;
  while (path.size() > 1 && path.back() == '/')
    path.pop_back();
  location_.name = std::filesystem::path(path).filename().string();
  std::error_code ignored;
  if (!std::filesystem::exists(path + "/config.json", ignored)) {
    const auto located = checkpoint::locate_model(model, paths.hub_cache);
    if (!located) return located.error();
    if (located->kind != checkpoint::ModelKind::kHuggingFace) {
      return make_error(Errc::kUnsupported,
                        location_.path + " has no metadata, and " + model +
                            " does not say what its regions are; name a directory of Hugging "
                            "Face's files, or org/name");
    }
    path = located->path;
    location_.name = located->name;
  }
  auto directory = checkpoint::read_hf_directory(path);
  if (!directory) return std::move(directory).error();
  const auto described = model::model_source_from_hf(
      std::make_shared<const NoTensors>(path), directory->config, directory->generation_config);
  if (!described) return described.error();
  WeightsDocument document;
  document.container = kHfContainer;
  document.model = location_.name;
  document.config_json = described->config.to_json();
  set_hf_texts(*directory, document);
  auto opened =
      open_public_weights(std::move(reader), std::move(document), described->config, checks);
  if (!opened) return std::move(opened).error();
  return use_hf(*directory, std::make_shared<const WeightsFile>(*std::move(opened)));
}

void ModelLoader::use_chat_template(checkpoint::StoredTemplate chat_template) {
  TextSource text = *text_;
  text.chat_template = std::move(chat_template);
  text_ = std::make_shared<const TextSource>(std::move(text));
}

Result<WeightsDocument> ModelLoader::describe() const {
  WeightsDocument document;
  switch (location_.kind) {
    case checkpoint::ModelKind::kGguf: {
      const auto file = checkpoint::GgufFile::open(location_.path);
      if (!file) return file.error();
      document.container = kGgufContainer;
      document.gguf_metadata.assign(file->metadata_bytes().begin(), file->metadata_bytes().end());
      break;
    }
    case checkpoint::ModelKind::kHuggingFace: {
      auto directory = checkpoint::read_hf_directory(location_.path);
      if (!directory) return std::move(directory).error();
      document.container = kHfContainer;
      set_hf_texts(*std::move(directory), document);
      break;
    }
    case checkpoint::ModelKind::kThaw:
      document = static_cast<const WeightsFile&>(*source_.tensors).document();
      document.tensors.clear();
      break;
  }
  document.model = location_.name;
  document.config_json = source_.config.to_json();
  document.dtype = checkpoint::dtype_name(main_dtype(*source_.tensors));
  document.tokenizer_hash = hash_tokenizer(text_->tokenizer);
  document.chat_template_hash.reset();
  if (const auto& chat_template = text_->chat_template)
    document.chat_template_hash = hash_template(*chat_template);
  return document;
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
