#pragma once

#include <cuda_runtime_api.h>

namespace thaw::cuda {

/// Throws `Exception` where a runtime call or a launch failed: `kResourceExhausted` when the device
/// or pinned memory ran out, else `kCuda`. The message names `what` and CUDA's own error. Clears
/// the recorded last error. After an error that poisons the context (an illegal access) every later
/// call fails too: the process is the unit of recovery.
void check(cudaError_t error, const char* what = "", const char* file = __builtin_FILE(),
           int line = __builtin_LINE());

/// The same for destructors: logs instead of throwing; silent while the runtime shuts down.
void check_noexcept(cudaError_t error, const char* what) noexcept;

/// Sets the current device and restores the one before.
class DeviceScope {
 public:
  explicit DeviceScope(int device) noexcept;
  ~DeviceScope();
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  int previous_ = 0;
  bool switched_ = false;
};

}  // namespace thaw::cuda
