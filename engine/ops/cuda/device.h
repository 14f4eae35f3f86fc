#pragma once

#include <memory>
#include <string>

#include "engine/base/result.h"
#include "engine/cuda/device_info.h"
#include "engine/ops/device.h"

namespace thaw::ops {

/// A GPU whose kernels are the set `cuda-1` (docs/exactness.md). Its operations are the functions
/// of engine/ops/cuda: they take a params struct and, last, the stream; they allocate nothing,
/// never synchronise, may be captured in a graph, and throw `Exception` where a shape is wrong or a
/// launch fails. Immutable after creation, so any thread may use it.
class CudaDevice final : public Device {
 public:
  /// Errors: `kUnavailable` where there is no such device; `kUnsupported` for a GPU that is not
  /// Hopper (compute capability 9.0): the kernels are wgmma and bulk copies. Makes the device
  /// current for the calling thread.
  static Result<std::unique_ptr<CudaDevice>> create(int ordinal);

  DeviceKind kind() const override { return DeviceKind::kCuda; }
  std::string kernel_set() const override { return "cuda-1"; }
  const thaw::cuda::DeviceInfo& info() const { return info_; }
  int multiprocessors() const { return info_.multiprocessors; }

 private:
  explicit CudaDevice(thaw::cuda::DeviceInfo info) : info_(std::move(info)) {}
  thaw::cuda::DeviceInfo info_;
};

}  // namespace thaw::ops
