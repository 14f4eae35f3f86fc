#pragma once

#include <functional>

#include "engine/base/fork_plan.h"
#include "engine/base/pool_status.h"

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

  virtual PoolStatus status() const = 0;
};

}  // namespace thaw::coalescer
