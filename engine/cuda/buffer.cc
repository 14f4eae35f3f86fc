#include "engine/cuda/buffer.h"

#include <string>

#include "engine/base/error.h"
#include "engine/cuda/check.h"

namespace thaw::cuda::detail {

static_assert(static_cast<unsigned>(PinnedKind::kWriteCombined) == cudaHostAllocWriteCombined);

void* allocate_device(std::size_t bytes, cudaStream_t stream, int* device) {
  check(cudaGetDevice(device), "current device");
  if (bytes == 0) return nullptr;
  void* data = nullptr;
  check(cudaMallocAsync(&data, bytes, stream), "allocate device memory");
  return data;
}

void free_device(void* data, cudaStream_t stream, int device) noexcept {
  const DeviceScope scope(device);
  check_noexcept(cudaFreeAsync(data, stream), "device memory");
}

void* allocate_pinned(std::size_t bytes, unsigned flags) {
  if (bytes == 0) return nullptr;
  void* data = nullptr;
  check(cudaHostAlloc(&data, bytes, flags), "allocate pinned memory");
  return data;
}

void free_pinned(void* data) noexcept {
  check_noexcept(cudaFreeHost(data), "pinned memory");
}

void copy(void* to, std::size_t to_bytes, const void* from, std::size_t from_bytes,
          cudaMemcpyKind kind, cudaStream_t stream) {
  if (to_bytes != from_bytes)
    throw Exception(make_error(Errc::kInvalidArgument,
                               "copy of " + std::to_string(from_bytes) + " bytes into a span of " +
                                   std::to_string(to_bytes) + "; they must be equal"));
  if (to_bytes == 0) return;
  check(cudaMemcpyAsync(to, from, to_bytes, kind, stream), "copy");
}

}  // namespace thaw::cuda::detail
