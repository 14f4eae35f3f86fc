#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "cli/memory_budget.h"
#include "cli/model_loader.h"
#include "cli/registration.h"
#include "coalescer/http/model_admin.h"
#include "coalescer/openai/served_models.h"
#include "engine/model/image_cache.h"
#include "engine/ops/packed_weight.h"
#include "forkpool/model_pool.h"

namespace thaw::cli {

/// What decides how models are loaded and what fits; the same for all of a server.
struct RegistryOptions {
  ModelPaths paths;
  ops::PackingOptions packing;
  int num_threads = 1;
  bool use_generation = true;  ///< the checkpoints' own sampling defaults
  std::uint32_t max_model_len = 0;  ///< 0: each model's own
  std::size_t num_slots = 1;
  bool keeps_images = true;  ///< packed weights are files, so that only slots need them in memory
  MemoryBudget rest;  ///< everything but weights
  std::uint64_t available_bytes = 0;  ///< when the server started
  AllowedDirectories allowed;
};

/// The models of one server: loads them, keeps what speaks with them in the table that the HTTP
/// side reads, and hands their weights to the pool. Thread-safe; loading happens one after another.
class ModelRegistry final : public coalescer::ModelAdmin {
 public:
  /// `images` must outlive this, and be older than the loaders that load() gets.
  ModelRegistry(RegistryOptions options, model::ImageCache* images);

  /// Loads a model and puts it into the table; what the pool needs of it is returned. For before
  /// attach(). Errors: what is wrong with its files, a name that is taken, all models together too
  /// large.
  Result<forkpool::ModelSpec> load(std::vector<std::string> names, const ModelLoader& loader);

  /// From here on models come and go through the pool too. It must outlive the calls that change
  /// them.
  void attach(forkpool::ModelPool* pool);

  std::shared_ptr<const coalescer::ServedModels> models() const { return models_; }
  /// With the models loaded so far, and `more_bytes` of weights.
  MemoryBudget budget(std::uint64_t more_bytes = 0) const;

  coalescer::ApiResult<std::monostate> register_model(const std::string& name,
                                                      const std::string& path) override;
  coalescer::ApiResult<bool> unregister_model(const std::string& name) override;
  coalescer::ApiResult<Loaded> load_model(const std::string& name) override;

 private:
  const RegistryOptions options_;
  model::ImageCache* images_;
  std::shared_ptr<coalescer::ServedModels> models_ = std::make_shared<coalescer::ServedModels>();
  std::mutex mutex_;
  std::map<std::string, std::uint64_t> weight_bytes_;  // guarded by mutex_
  forkpool::ModelPool* pool_ = nullptr;
};

}  // namespace thaw::cli
