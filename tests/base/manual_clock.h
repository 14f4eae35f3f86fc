#pragma once

#include "engine/base/clock.h"

namespace thaw {

/// Time that passes when a test says so.
class ManualClock final : public Clock {
 public:
  TimePoint now() const override { return now_; }
  void advance(Duration duration) { now_ += duration; }

 private:
  TimePoint now_{};
};

}  // namespace thaw
