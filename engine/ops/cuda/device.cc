#include "engine/ops/cuda/device.h"

#include <utility>

#include "engine/cuda/check.h"
#include "engine/ops/cuda/kernels.h"

namespace thaw::ops {

Result<std::unique_ptr<CudaDevice>> CudaDevice::create(int ordinal) try {
  Result<thaw::cuda::DeviceInfo> info = thaw::cuda::device_info(ordinal);
  if (!info) return info.error();
  if (info->compute_major != 9 || info->compute_minor != 0)
    return make_error(Errc::kUnsupported, "CUDA device " + std::to_string(ordinal) + ", " +
                                              info->name + ", has compute capability " +
                                              std::to_string(info->compute_major) + "." +
                                              std::to_string(info->compute_minor) +
                                              "; thaw's kernels need 9.0 (H100, H200)");
  thaw::cuda::check(cudaSetDevice(ordinal), "set device");
  cuda::prepare_stream_kernels();
  cuda::prepare_tile_kernels();
  cuda::prepare_attention_kernels();
  cuda::prepare_elementwise_kernels();
  cuda::prepare_rope_kernels();
  cuda::prepare_draw_kernels();
  cuda::prepare_gather_kernels();
  cuda::prepare_gather_norm_kernel();
  return std::unique_ptr<CudaDevice>(
      new CudaDevice(std::move(*info)));  // NOLINT: private constructor
} catch (const Exception& failure) {
  return failure.error();
}

}  // namespace thaw::ops
