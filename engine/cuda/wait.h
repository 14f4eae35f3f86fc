#pragma once

#include <chrono>

#include "engine/cuda/stream.h"

namespace thaw::cuda {

/// Waits until the event's mark is reached: asks without pause for `spin`, then every `nap`. False
/// where `deadline` passes first; CUDA's own wait has none. Throws what the stream's work failed
/// with. Thread-safe.
bool wait_until(const Event& event, std::chrono::steady_clock::time_point deadline,
                std::chrono::microseconds spin = std::chrono::milliseconds(20),
                std::chrono::microseconds nap = std::chrono::microseconds(50));

}  // namespace thaw::cuda
