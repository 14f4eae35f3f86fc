#pragma once

#include <cstddef>
#include <functional>
#include <memory>

#include "engine/base/result.h"
#include "forkpool/protocol.h"

namespace thaw::forkpool::worker {

/// Another worker's KV memory, mapped for reading as long as this lives.
class PeerMemory {
 public:
  virtual ~PeerMemory() = default;
  virtual const std::byte* base() const = 0;
};

/// Maps it by its descriptor. Errors: what the device cannot reach.
using MapPeer = std::function<Result<std::unique_ptr<PeerMemory>>(const DeviceMemory& memory)>;

}  // namespace thaw::forkpool::worker
