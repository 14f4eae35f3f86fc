#include "kvsnap/pinned_range.h"

#include <cuda_runtime_api.h>

#include <string>

#include "engine/cuda/check.h"

namespace thaw::kvsnap {

Result<PinnedRange> PinnedRange::pin(std::span<std::byte> memory) try {
  cuda::check(cudaHostRegister(memory.data(), memory.size(), cudaHostRegisterPortable),
              ("pinning " + std::to_string(memory.size()) + " bytes of the arena").c_str());
  return PinnedRange(memory.data());
} catch (const Exception& failure) {
  return failure.error();
}

PinnedRange::~PinnedRange() {
  if (data_ != nullptr) cuda::check_noexcept(cudaHostUnregister(data_), "pinned range");
}

}  // namespace thaw::kvsnap
