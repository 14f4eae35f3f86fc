#include "engine/model/source.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "engine/checkpoint/end_tokens.h"
#include "engine/model/families/family.h"

namespace thaw::model {
namespace {

/// "llama, qwen2 and qwen3".
std::string listed(std::vector<std::string> names) {
  std::string text = names.front();
  for (std::size_t i = 1; i < names.size(); ++i)
    text += (i + 1 == names.size() ? " and " : ", ") + names[i];
  return text;
}

std::string gguf_architectures() {
  std::vector<std::string> names;
  for (const Family* family : kFamilies)
    if (family->gguf_architecture != nullptr) names.emplace_back(family->gguf_architecture);
  return listed(names);
}

std::string hf_architectures() {
  std::vector<std::string> names;
  names.reserve(kFamilies.size());
  for (const Family* family : kFamilies)
    names.emplace_back(family->hf_architecture);
  return listed(names);
}

template <typename T>
std::optional<T> sensible(std::optional<double> value, double least, double most) {
  if (!value || !(*value >= least) || !(*value <= most)) return std::nullopt;
  return static_cast<T>(*value);
}

constexpr double kMostTopK = 1 << 24;
constexpr double kMostTemperature = 100;
constexpr double kMostPenalty = 100;

GenerationDefaults gguf_generation(const checkpoint::GgufFile& file) {
  const auto number = [&file](const char* key) -> std::optional<double> {
    if (const auto integer = file.get_int(key)) return static_cast<double>(*integer);
    return file.get_float(key);
  };
  GenerationDefaults defaults;
  defaults.temperature = sensible<float>(number("general.sampling.temp"), 0, kMostTemperature);
  defaults.top_p = sensible<float>(number("general.sampling.top_p"), 1e-6, 1);
  defaults.top_k = sensible<int>(number("general.sampling.top_k"), 0, kMostTopK);
  defaults.min_p = sensible<float>(number("general.sampling.min_p"), 0, 1);
  defaults.repetition_penalty =
      sensible<float>(number("general.sampling.penalty_repeat"), 1e-3, kMostPenalty);
  return defaults;
}

GenerationDefaults hf_generation(JsonKeys& keys) {
  GenerationDefaults defaults;
  if (keys.has("do_sample")) defaults.do_sample = keys.flag("do_sample", false);
  defaults.temperature = sensible<float>(keys.number("temperature"), 0, kMostTemperature);
  defaults.top_p = sensible<float>(keys.number("top_p"), 1e-6, 1);
  defaults.top_k = sensible<int>(keys.number("top_k"), 0, kMostTopK);
  defaults.min_p = sensible<float>(keys.number("min_p"), 0, 1);
  defaults.repetition_penalty =
      sensible<float>(keys.number("repetition_penalty"), 1e-3, kMostPenalty);
  return defaults;
}

/// The family that config.json names: by its architecture, else by its model_type, which is the
/// family's name.
Result<const Family*> hf_family(JsonKeys& keys, const std::string& where) {
  const auto architectures = keys.texts("architectures");
  const bool by_type = !architectures || architectures->empty();
  const std::string name =
      by_type ? keys.text("model_type", "") : architectures->front().substr(0, 64);
  if (const auto& error = keys.error()) return *error;
  for (const Family* family : kFamilies)
    if (name == (by_type ? family->name : family->hf_architecture)) return family;
  return make_error(Errc::kUnsupported, where + ": architecture '" + name +
                                            "' is not supported; supported are " +
                                            hf_architectures());
}

/// Ascending, without those outside the vocabulary.
std::vector<TokenId> known_tokens(std::vector<TokenId> ids, int vocab_size) {
  std::erase_if(ids, [vocab_size](TokenId id) { return id >= vocab_size; });
  std::ranges::sort(ids);
  const auto rest = std::ranges::unique(ids);
  ids.erase(rest.begin(), rest.end());
  return ids;
}

}  // namespace

Result<ModelSource> model_source_from_gguf(
    const checkpoint::GgufFile& metadata, std::shared_ptr<const checkpoint::TensorSource> tensors) {
  const auto unsupported = [&metadata](const std::string& what) {
    return make_error(Errc::kUnsupported,
                      metadata.path() + ": " + what + "; supported are " + gguf_architectures());
  };
  const auto found = metadata.get_string("general.architecture");
  if (!found) return unsupported("general.architecture is missing");
  const std::string architecture(found->substr(0, 64));
  for (const Family* family : kFamilies) {
    if (family->gguf_architecture == nullptr || architecture != family->gguf_architecture) continue;
    GgufKeys keys(metadata, *tensors, architecture);
    ModelSource source;
    source.config.family = family->name;
    family->read_gguf(keys, source.config);
    if (const auto& error = keys.error()) return *error;
    source.config.eos_token_ids = checkpoint::end_tokens(metadata);
    source.generation = gguf_generation(metadata);
    source.naming = TensorNaming::kGguf;
    source.tensors = std::move(tensors);
    return source;
  }
  return unsupported("architecture '" + architecture + "' is not supported");
}

Result<ModelSource> model_source_from_gguf(std::shared_ptr<const checkpoint::GgufFile> file) {
  const checkpoint::GgufFile& metadata = *file;
  return model_source_from_gguf(metadata, std::move(file));
}

Result<ModelSource> model_source_from_hf(std::shared_ptr<const checkpoint::TensorSource> tensors,
                                         const std::string& config_json,
                                         const std::string& generation_config_json) {
  const std::string where = tensors->path() + ": config.json";
  auto keys = JsonKeys::parse(config_json, where);
  if (!keys) return std::move(keys).error();
  const auto family = hf_family(*keys, where);
  if (!family) return family.error();
  ModelSource source;
  source.config.family = (*family)->name;
  (*family)->read_hf(*keys, source.config);
  source.config.eos_token_ids = keys->token_ids("eos_token_id");
  if (const auto& error = keys->error()) return *error;

  if (!generation_config_json.empty()) {
    auto generation =
        JsonKeys::parse(generation_config_json, tensors->path() + ": generation_config.json");
    if (!generation) return std::move(generation).error();
    source.generation = hf_generation(*generation);
    if (generation->has("eos_token_id"))
      source.config.eos_token_ids = generation->token_ids("eos_token_id");
    if (const auto& error = generation->error()) return *error;
  }
  source.config.eos_token_ids =
      known_tokens(std::move(source.config.eos_token_ids), source.config.vocab_size);
  source.naming = TensorNaming::kHuggingFace;
  source.tensors = std::move(tensors);
  return source;
}

}  // namespace thaw::model
