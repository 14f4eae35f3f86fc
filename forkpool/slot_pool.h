#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "engine/base/fork_plan.h"
#include "engine/base/pool_status.h"
#include "engine/base/trunk_keeping.h"
#include "forkpool/fork_pool.h"

namespace thaw::forkpool {

/// A model that slots can be given: its packed weights, which stay where they are while slots
/// change hands. What a slot gets of them is the descriptor.
struct ModelSpec {
  std::string name;  ///< GenerateRequest::model
  WeightsMemory weights;
  std::uint32_t max_model_len = 0;  ///< 0: the model's own
};

/// What ModelPool needs from whatever runs one model in a slot; ForkPool in the product, a fake in
/// tests. Thread-safe but for shutdown() and the destructor, which one thread calls.
class SlotPool {
 public:
  /// Called on the pool's thread; must not block, nor call shutdown().
  struct Listener {
    std::function<void(GenerateEvent)> on_event;
    std::function<void(const PoolStatus&)> on_status;  ///< after each change
  };

  virtual ~SlotPool() = default;
  /// As ForkPool's.
  virtual void submit(ForkPlan plan) = 0;
  virtual void cancel(RequestId request) = 0;
  virtual void end_choice(RequestId request, std::uint32_t choice) = 0;
  virtual PoolStatus status() const = 0;
  virtual void keep(KeepTrunk trunk, TrunkDone done) = 0;
  virtual void release(const PinId& pin) = 0;
  virtual void save(SaveTrunk trunk, TrunkDone done) = 0;
  virtual void load(LoadTrunk trunk, TrunkDone done) = 0;
  virtual void shutdown(std::chrono::milliseconds deadline) = 0;
};

/// Starts what serves a model and returns at once; the listener hears when it is ready, or that it
/// will not be.
using StartSlotPool =
    std::function<Result<std::unique_ptr<SlotPool>>(const ModelSpec&, SlotPool::Listener)>;

/// Slots of worker processes, as `options` says for each.
StartSlotPool fork_pool_slots(PoolOptions options);

}  // namespace thaw::forkpool
