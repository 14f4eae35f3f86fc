#pragma once

#include <optional>
#include <vector>

#include "engine/base/clock.h"
#include "engine/base/generate.h"

namespace thaw::coalescer {

/// Collects requests for a short time so that they are placed together. It decides placement only:
/// requests of different windows share all the same. No threads, no timers: the caller passes `now`
/// and wakes at deadline().
class Window {
 public:
  explicit Window(Clock::Duration length) : length_(length) {}

  /// Adds a request. A lone request on an idle pool does not wait: its deadline is `now`.
  void add(GenerateRequest request, Clock::TimePoint now, bool pool_idle);

  /// When take() is due; nullopt while empty.
  std::optional<Clock::TimePoint> deadline() const { return deadline_; }

  /// Drops a request that was cancelled before its window closed. False where it is not here.
  bool remove(RequestId request);

  /// All collected requests, oldest first; the window is empty afterwards.
  std::vector<GenerateRequest> take();

 private:
  Clock::Duration length_;
  std::optional<Clock::TimePoint> deadline_;
  std::vector<GenerateRequest> requests_;
};

}  // namespace thaw::coalescer
