#pragma once

#include <functional>

#include "engine/ops/device.h"

namespace thaw::ops::cpu {

/// The CPU half of `device`. Throws where the operation has no half for its kind.
CpuDevice& require_cpu(Device& device);

/// parallel_for without an allocation for the body's captures.
template <typename Body>
void parallel_for(CpuDevice& device, int num_tasks, const Body& body) {
  device.threads().parallel_for(num_tasks, std::cref(body));
}

}  // namespace thaw::ops::cpu
