#include "engine/cuda/wait.h"

#include <thread>

namespace thaw::cuda {

bool wait_until(const Event& event, std::chrono::steady_clock::time_point deadline,
                std::chrono::microseconds spin, std::chrono::microseconds nap) {
  const auto spin_end = std::chrono::steady_clock::now() + spin;
  while (!event.done()) {
    const auto now = std::chrono::steady_clock::now();
    if (now >= deadline) return event.done();
    if (now >= spin_end) std::this_thread::sleep_for(nap);
  }
  return true;
}

}  // namespace thaw::cuda
