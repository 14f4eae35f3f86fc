#include "cli/model_registry.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <numeric>

#include "cli/served_model.h"
#include "engine/base/log.h"

namespace thaw::cli {
namespace {

using coalescer::ApiError;
using coalescer::ApiResult;

/// For a model that has to be given a slot first.
constexpr std::chrono::seconds kLoadPatience{120};

/// A codec and the tokenizer and template that it speaks with.
struct OwnedCodec {
  explicit OwnedCodec(ModelText made)
      : text(std::move(made)),
        codec(coalescer::make_model_codec(text.tokenizer.get(), text.chat_template.get())) {}
  ModelText text;
  std::unique_ptr<coalescer::TextCodec> codec;
};

std::shared_ptr<const coalescer::TextCodec> own_codec(ModelText text) {
  const auto owned = std::make_shared<const OwnedCodec>(std::move(text));
  return {owned, owned->codec.get()};
}

/// What is wrong with a file that somebody asked for is theirs to put right.
ApiError as_request_error(const Error& error) {
  ApiError result = coalescer::to_api_error(error);
  if (result.status < 500 && result.status != 429) return result;
  return coalescer::invalid_field("path", error.message, errc_name(error.code));
}

}  // namespace

ModelRegistry::ModelRegistry(RegistryOptions options, model::ImageCache* images)
    : options_(std::move(options)), images_(images) {}

void ModelRegistry::attach(forkpool::ModelPool* pool) {
  const std::scoped_lock lock(mutex_);
  pool_ = pool;
}

MemoryBudget ModelRegistry::budget(std::uint64_t more_bytes) const {
  std::vector<std::uint64_t> weights;
  weights.reserve(weight_bytes_.size() + 1);
  for (const auto& [name, bytes] : weight_bytes_)
    weights.push_back(bytes);
  if (more_bytes != 0) weights.push_back(more_bytes);
  std::ranges::sort(weights, std::greater());
  std::string what = "weights";
  if (weights.size() > 1) what += " of " + std::to_string(weights.size()) + " models";
  // The kernel may drop the pages of a file that no slot has mapped.
  if (options_.keeps_images && weights.size() > options_.num_slots) {
    weights.resize(options_.num_slots);
    what += ", the largest " + std::to_string(options_.num_slots) + " at once";
  }
  MemoryBudget budget;
  budget.parts.push_back({what, std::accumulate(weights.begin(), weights.end(), std::uint64_t{0})});
  budget.parts.insert(budget.parts.end(), options_.rest.parts.begin(), options_.rest.parts.end());
  return budget;
}

Result<forkpool::ModelSpec> ModelRegistry::load(std::vector<std::string> names,
                                                const ModelLoader& loader) {
  for (const std::string& name : names) {
    if (models_->find(name) == nullptr || name.empty()) continue;
    return make_error(Errc::kInvalidArgument,
                      "a model called `" + name + "` is served already; choose another name");
  }
  const std::uint64_t estimate = loader.estimated_weight_bytes(options_.packing);
  if (const auto fits = check_fits(budget(estimate), options_.available_bytes); !fits)
    return make_error(fits.error().code, loader.path() + ": " + fits.error().message);
  auto loaded = loader.load(options_.packing, options_.num_threads, *images_);
  if (!loaded) return std::move(loaded).error();

  coalescer::ServedModel served;
  served.names = std::move(names);
  served.max_model_len = static_cast<std::uint32_t>(loaded->image.config.max_positions);
  if (options_.max_model_len != 0)
    served.max_model_len = std::min(served.max_model_len, options_.max_model_len);
  served.description = describe_model(loader.source(), options_.packing, options_.use_generation);
  forkpool::ModelSpec spec;
  spec.weights.token_texts = std::make_shared<const TokenTexts>(loaded->text.tokenizer->texts());
  served.codec = own_codec(std::move(loaded->text));
  served.weights = loaded->image.digest.to_hex();
  served.path = loader.path();
  served.created = std::chrono::duration_cast<std::chrono::seconds>(
                       std::chrono::system_clock::now().time_since_epoch())
                       .count();
  spec.name = served.name();
  spec.max_model_len = served.max_model_len;
  spec.weights.fd = std::move(loaded->image.fd);
  spec.weights.size_bytes = loaded->image.size_bytes;
  if (pool_ == nullptr) {
    if (auto added = models_->add(std::move(served)); !added) return std::move(added).error();
    weight_bytes_[spec.name] = spec.weights.size_bytes;
    return spec;
  }
  // The pool first: whoever finds a model in the table may send requests at once.
  const std::string name = spec.name;
  const std::uint64_t bytes = spec.weights.size_bytes;
  if (auto added = pool_->add(std::move(spec)); !added) return std::move(added).error();
  if (auto added = models_->add(std::move(served)); !added) {
    static_cast<void>(pool_->remove(name));
    return std::move(added).error();
  }
  weight_bytes_[name] = bytes;
  return forkpool::ModelSpec{};
}

ApiResult<std::monostate> ModelRegistry::register_model(const std::string& name,
                                                        const std::string& path) {
  const std::scoped_lock lock(mutex_);
  if (options_.allowed.empty()) {
    ApiError error = coalescer::invalid_field(
        "", "models cannot be registered while this server runs; start it with --snapshot-dir",
        "permission_denied");
    error.status = 403;
    return error;
  }
  auto resolved = options_.allowed.resolve(path);
  if (auto* error = std::get_if<ApiError>(&resolved)) return std::move(*error);
  const std::string& real = std::get<std::string>(resolved);
  // Before anything is read, where it is a directory; what a file leads to (the other parts of a
  // split one) is known once it is open.
  if (auto checked = options_.allowed.check_files({real}); checked.index() == 1)
    return std::get<ApiError>(std::move(checked));
  const auto loader = ModelLoader::open(real, options_.paths);
  if (!loader) return as_request_error(loader.error());
  if (auto checked = options_.allowed.check_files(loader->source().tensors->files());
      checked.index() == 1)
    return std::get<ApiError>(std::move(checked));
  if (const auto loaded = load({name}, *loader); !loaded) return as_request_error(loaded.error());
  logger("serve")->info("event=registered model={} path={}", name, real);
  return std::monostate();
}

ApiResult<bool> ModelRegistry::unregister_model(const std::string& name) {
  const std::scoped_lock lock(mutex_);
  const auto model = name.empty() ? nullptr : models_->find(name);
  if (model == nullptr) return false;
  if (model == models_->find("")) {
    return coalescer::invalid_field(
        "name",
        "`" + name + "` is the first model, which requests without a model are of; it stays");
  }
  models_->remove(name);
  static_cast<void>(pool_->remove(model->name()));
  weight_bytes_.erase(model->name());
  logger("serve")->info("event=unregistered model={}", model->name());
  return true;
}

ApiResult<coalescer::ModelAdmin::Loaded> ModelRegistry::load_model(const std::string& name) {
  const auto model = coalescer::require_model(*models_, name);
  if (const auto* error = std::get_if<ApiError>(&model)) return *error;
  const std::string& known_as = std::get<coalescer::ServedModelPtr>(model)->name();
  const auto loaded = pool_->wait_loaded(known_as, kLoadPatience);
  if (!loaded) return coalescer::to_api_error(loaded.error());
  const std::scoped_lock lock(mutex_);
  const auto bytes = weight_bytes_.find(known_as);
  return Loaded{loaded->count(), bytes == weight_bytes_.end() ? 0 : bytes->second};
}

}  // namespace thaw::cli
