#pragma once

#include <functional>

#include "engine/base/fork_plan.h"
#include "engine/base/pool_status.h"
#include "engine/base/trunk_keeping.h"

namespace thaw::coalescer {

/// What the coalescer needs from whatever runs the model; the fork pool in the product, a fake in
/// tests. Thread-safe; no call blocks.
class Backend {
 public:
  virtual ~Backend() = default;

  /// Set once, before the first submit. The sink is called from any one thread at a time and must
  /// not block.
  virtual void set_event_sink(std::function<void(GenerateEvent)> sink) = 0;

  /// Every request of the plan ends with exactly one CompletedEvent or FailedEvent.
  virtual void submit(ForkPlan plan) = 0;

  /// The request ends soon with a CompletedEvent. Unknown ids are ignored.
  virtual void cancel(RequestId request) = 0;

  /// Nobody wants more of one of its choices, which has tokens: it ends soon with FinishedEvent
  /// kCancelled, the others go on. Ignored for choices that have ended, and unknown ids.
  virtual void end_choice(RequestId request, std::uint32_t choice) = 0;

  virtual PoolStatus status() const = 0;

  // Trunks that outlive the requests that computed them. Each `done` is called exactly once, on the
  // backend's thread or from within the call, and must not block.

  /// Covers as much of the tokens as is alive.
  virtual void keep(KeepTrunk trunk, TrunkDone done) = 0;
  /// Unknown pins are ignored.
  virtual void release(const PinId& pin) = 0;
  /// Covers as much of the tokens as is alive. The files are whole and on the disk when it is done.
  virtual void save(SaveTrunk trunk, TrunkDone done) = 0;
  /// Nothing of a file is used before all of it was compared with its checksums.
  virtual void load(LoadTrunk trunk, TrunkDone done) = 0;
};

}  // namespace thaw::coalescer
