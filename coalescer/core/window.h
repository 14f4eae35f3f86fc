#pragma once

#include <chrono>
#include <cstddef>
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

  /// Adds a request. A lone one, for whose kind neither the pool nor the server is at work, does
  /// not wait: its deadline is `now`.
  void add(GenerateRequest request, Clock::TimePoint now, bool is_lone);

  /// Lets the window wait a little longer, for what is still being read; false, and no change,
  /// where it has been for kMostExtension, does not wait at all or is empty.
  bool extend();
  static constexpr std::chrono::microseconds kExtension{500};
  static constexpr std::chrono::milliseconds kMostExtension{8};

  std::size_t size() const { return requests_.size(); }
  /// When take() is due; nullopt while empty.
  std::optional<Clock::TimePoint> deadline() const { return deadline_; }

  /// Drops a request that was cancelled before its window closed. False where it is not here.
  bool remove(RequestId request);

  /// All collected requests, oldest first; the window is empty afterwards.
  std::vector<GenerateRequest> take();

 private:
  Clock::Duration length_;
  Clock::TimePoint opened_;
  std::optional<Clock::TimePoint> deadline_;
  std::vector<GenerateRequest> requests_;
};

}  // namespace thaw::coalescer
