#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/base/clock.h"
#include "engine/base/memory_map.h"
#include "engine/base/result.h"
#include "engine/base/token_texts.h"
#include "engine/checkpoint/weight_image.h"
#include "engine/grammar/service.h"
#include "engine/kv/block_pool.h"
#include "engine/kv/radix_index.h"
#include "engine/model/model.h"
#include "engine/scheduler/scheduler.h"
#include "forkpool/protocol.h"
#include "forkpool/worker/device_parts.h"
#include "forkpool/worker/eviction_offers.h"
#include "forkpool/worker/outbox.h"
#include "forkpool/worker/snapshot_service.h"
#include "forkpool/worker/worker.h"
#include "kvsnap/arena_memory.h"
#include "kvsnap/copy_pipeline.h"

namespace thaw::forkpool::worker {

/// What the pool says before anything runs.
struct BootFrames {
  InitFrame init;
  std::shared_ptr<const TokenTexts> token_texts;  ///< null: the pool does not know
  std::vector<DeviceMemory> inherited;  ///< by rank; of nothing where the pool keeps nothing
  AdoptFrame adopt;
};

/// Everything a worker computes with, in the order in which it is built. The weights and the KV
/// blocks are memory that the pool owns, files or device memory: what a former process of this
/// worker published there is adopted. Not movable; one thread.
class Engine {
 public:
  /// Maps the inherited descriptors and builds the engine. `outbox` hears of everything it does and
  /// must outlive it. Errors name what does not fit: the weight image, or what the device's parts
  /// find.
  static Result<std::unique_ptr<Engine>> boot(const WorkerFds& fds, const BootFrames& frames,
                                              Outbox& outbox);

  scheduler::Scheduler& scheduler() { return *scheduler_; }
  SnapshotService& snapshots() { return *snapshots_; }
  /// A trunk that will be evicted before long, while no copy is under way.
  std::optional<OfferFrame> next_offer() {
    if (arena() == nullptr || snapshots_->busy()) return std::nullopt;
    return offers_->next();
  }
  /// The scheduler's counters and the snapshots'.
  EngineStats stats() const;
  const ReadyFrame& ready() const { return ready_; }
  /// What it took to map the weights, check their image's table, and have them on the device.
  double weights_ms() const { return weights_ms_; }

 private:
  Engine() = default;
  kvsnap::ArenaView* arena() { return arena_ ? &*arena_ : nullptr; }
  Result<void> map_files(int weights_fd, int arena_fd);
  Result<void> build_model(const PartsRequest& request);
  Result<void> adopt_blocks(const AdoptFrame& adopt, Outbox& outbox);
  void build_scheduler(const BootFrames& frames, Outbox& outbox);
  Result<void> build_snapshots(Outbox& outbox);

  SteadyClock clock_;
  Mapping weights_;
  std::optional<kvsnap::ArenaView> arena_;
  checkpoint::WeightImageView image_;
  std::unique_ptr<DeviceParts> parts_;
  std::unique_ptr<model::Model> model_;
  std::unique_ptr<kv::BlockPool> pool_;
  std::unique_ptr<kv::RadixIndex> index_;
  std::unique_ptr<EvictionOffers> offers_;
  std::unique_ptr<grammar::Service> grammars_;
  std::unique_ptr<scheduler::Scheduler> scheduler_;
  std::unique_ptr<SnapshotService> snapshots_;
  std::unique_ptr<kvsnap::CopyPipeline> pipeline_;  ///< ends first: it copies what that one maps
  ReadyFrame ready_;
  double weights_ms_ = 0;
};

}  // namespace thaw::forkpool::worker
