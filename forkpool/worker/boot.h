#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "engine/base/clock.h"
#include "engine/base/memory_map.h"
#include "engine/base/result.h"
#include "engine/checkpoint/weight_image.h"
#include "engine/kv/block_pool.h"
#include "engine/kv/radix_index.h"
#include "engine/model/model.h"
#include "engine/ops/device.h"
#include "engine/scheduler/scheduler.h"
#include "forkpool/protocol.h"
#include "forkpool/worker/outbox.h"
#include "forkpool/worker/snapshot_service.h"
#include "forkpool/worker/worker.h"
#include "kvsnap/arena_memory.h"
#include "kvsnap/copy_pipeline.h"

namespace thaw::forkpool::worker {

/// Everything a worker computes with, in the order in which it is built. The weights and the KV
/// blocks are the pool's memory, mapped: what a former process of this worker published there is
/// adopted. Not movable; one thread.
class Engine {
 public:
  /// Maps the inherited descriptors and builds the engine. `outbox` hears of everything it does and
  /// must outlive it. Errors name what does not fit: the weight image, KV dtype, memory size, ISA.
  static Result<std::unique_ptr<Engine>> boot(const WorkerFds& fds, const InitFrame& init,
                                              const AdoptFrame& adopt, Outbox& outbox);

  scheduler::Scheduler& scheduler() { return *scheduler_; }
  SnapshotService& snapshots() { return *snapshots_; }
  /// The scheduler's counters and the snapshots'.
  EngineStats stats() const;
  const ReadyFrame& ready() const { return ready_; }
  /// What mapping the weights and checking their image's table took.
  double weights_ms() const { return weights_ms_; }

 private:
  Engine() = default;
  Result<void> map_memory(const WorkerFds& fds);
  Result<void> build_model(const InitFrame& init);
  Result<void> adopt_blocks(const AdoptFrame& adopt);
  void build_scheduler(const InitFrame& init, Outbox& outbox);
  void build_snapshots(const InitFrame& init, Outbox& outbox);

  SteadyClock clock_;
  Mapping weights_;
  Mapping kv_memory_;
  std::optional<kvsnap::ArenaView> arena_;
  checkpoint::WeightImageView image_;
  std::unique_ptr<ops::CpuDevice> device_;
  std::unique_ptr<model::Model> model_;
  std::unique_ptr<kv::BlockPool> pool_;
  std::unique_ptr<kv::RadixIndex> index_;
  std::unique_ptr<scheduler::Scheduler> scheduler_;
  std::unique_ptr<kvsnap::CopyPipeline> pipeline_;
  std::unique_ptr<SnapshotService> snapshots_;
  ReadyFrame ready_;
  double weights_ms_ = 0;
};

}  // namespace thaw::forkpool::worker
