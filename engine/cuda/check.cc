#include "engine/cuda/check.h"

#include <string>

#include "engine/base/error.h"
#include "engine/base/log.h"

namespace thaw::cuda {

void check(cudaError_t error, const char* what, const char* file, int line) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or the next launch check would report this one again
  const Errc code = error == cudaErrorMemoryAllocation ? Errc::kResourceExhausted : Errc::kCuda;
  std::string message = cudaGetErrorName(error);
  message += ": ";
  message += cudaGetErrorString(error);
  if (*what != '\0') message = std::string(what) + ": " + message;
  throw Exception(make_error(code, std::move(message), file, line));
}

void check_noexcept(cudaError_t error, const char* what) noexcept {
  // cudaErrorCudartUnloading: static destructors run after the runtime's own; nothing is leaked.
  if (error == cudaSuccess || error == cudaErrorCudartUnloading) return;
  cudaGetLastError();
  try {
    logger("cuda")->error("event=release_failed what={} error={}", what, cudaGetErrorName(error));
  } catch (...) {  // NOLINT(bugprone-empty-catch): a destructor has nobody to tell
  }
}

DeviceScope::DeviceScope(int device) noexcept {
  if (cudaGetDevice(&previous_) == cudaSuccess && previous_ != device)
    switched_ = cudaSetDevice(device) == cudaSuccess;
}

DeviceScope::~DeviceScope() {
  if (switched_) cudaSetDevice(previous_);
}

}  // namespace thaw::cuda
