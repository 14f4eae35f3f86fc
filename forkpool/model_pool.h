#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/base/clock.h"
#include "engine/base/fork_plan.h"
#include "engine/base/generate.h"
#include "engine/base/pool_status.h"
#include "engine/base/result.h"
#include "engine/base/trunk_keeping.h"
#include "forkpool/model_schedule.h"
#include "forkpool/slot_pool.h"

namespace thaw::forkpool {

struct ModelPoolOptions {
  ModelSchedule::Options schedule;
  std::uint32_t workers_per_slot = 1;  ///< for the numbering of workers in status()
  std::chrono::milliseconds swap_deadline{60000};  ///< for a slot's workers to be ready
  std::uint32_t max_waiting = 1024;  ///< requests of each model that wait for a slot
};

/// Several models on few slots. A slot is a pool of workers with one model's weights; requests go
/// to the slot that has their model, or wait until one is given to it (ModelSchedule says which and
/// when). To give a slot away its workers end and others start with the other weights, in KV memory
/// of their own: KV never outlives the weights that made it.
///
/// Requests that give way go on where they stopped, from the journal, with the bits that they would
/// have had: no token is lost or sent twice. Thread-safe. Pools are stopped and started on threads
/// of its own; no call but shutdown(), wait_loaded() and the destructor waits for one.
class ModelPool {
 public:
  /// Called from one thread at a time, which holds a lock of the pool: must neither block nor call
  /// it.
  using EventSink = std::function<void(GenerateEvent)>;

  /// The first models are given the slots at once. `clock` must outlive the pool; deadlines of
  /// requests and swaps count by it. REQUIRES: names differ.
  ModelPool(const ModelPoolOptions& options, std::vector<ModelSpec> models, StartSlotPool start,
            EventSink sink, const Clock* clock);
  /// shutdown() without patience.
  ~ModelPool();
  ModelPool(const ModelPool&) = delete;
  ModelPool& operator=(const ModelPool&) = delete;

  /// Errors: kInvalidArgument where the name is taken, be it by a model that is still leaving.
  Result<void> add(ModelSpec model);
  /// Takes no more requests of the model; those it has are answered. Errors: kNotFound.
  Result<void> remove(const std::string& name);
  /// Waits until the model has a slot, which it may have to be given. Returns how long that took.
  /// Errors: kNotFound, kUnavailable with the reason, kDeadlineExceeded.
  Result<std::chrono::duration<double>> wait_loaded(const std::string& name,
                                                    std::chrono::milliseconds deadline);

  /// Every request ends with exactly one CompletedEvent or FailedEvent.
  void submit(ForkPlan plan);
  void cancel(RequestId request);
  void end_choice(RequestId request, std::uint32_t choice);
  /// Trunks kept beyond their requests (engine/base/trunk_keeping.h), in the slot of their owner's
  /// model. They go when the slot is given away. Errors beside those of the slot's pool:
  /// kUnavailable where the model has no slot now.
  void keep(KeepTrunk trunk, TrunkDone done);
  void release(const PinId& pin);
  void save(SaveTrunk trunk, TrunkDone done);
  void load(LoadTrunk trunk, TrunkDone done);

  /// Workers are numbered over all slots and keep their counters when a slot changes hands.
  PoolStatus status() const;

  /// Lets what runs and waits finish, refuses new requests, ends all workers; what is left at the
  /// deadline fails.
  void shutdown(std::chrono::milliseconds deadline);

  /// Decides again now; for tests that move the clock.
  void replan();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace thaw::forkpool
