#pragma once

#include <chrono>
#include <cstdint>

namespace thaw::coalescer {

/// Seconds since the epoch, for what clients are told.
inline std::int64_t unix_seconds() {
  return std::chrono::duration_cast<std::chrono::seconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

}  // namespace thaw::coalescer
