#pragma once

#include <algorithm>
#include <chrono>

#include "engine/base/clock.h"

namespace thaw::forkpool {

/// How long a dead worker's slot waits: `initial`, doubling with every death up to `max`, from the
/// start again after a process that lived longer than `healthy_after`.
class Backoff {
 public:
  struct Policy {
    std::chrono::milliseconds initial{50};
    std::chrono::milliseconds max{5000};
    std::chrono::milliseconds healthy_after{60000};
  };

  explicit Backoff(Policy policy) : policy_(policy), next_(policy.initial) {}

  /// `ready_since`: when the process that died began to serve; ignored if it never did.
  std::chrono::milliseconds after_death(bool was_ready, Clock::TimePoint ready_since,
                                        Clock::TimePoint now) {
    if (was_ready && now - ready_since >= policy_.healthy_after) next_ = policy_.initial;
    const auto delay = next_;
    next_ = std::min(next_ * 2, policy_.max);
    return delay;
  }

 private:
  Policy policy_;
  std::chrono::milliseconds next_;
};

}  // namespace thaw::forkpool
