#pragma once

#include <cstddef>
#include <string>

#include "engine/base/result.h"
#include "engine/cuda/stream.h"

namespace thaw::cuda {

/// What a GPU is, read once.
struct DeviceInfo {
  int ordinal = 0;
  std::string name;
  int compute_major = 0;
  int compute_minor = 0;
  int multiprocessors = 0;
  std::size_t total_bytes = 0;
  std::size_t l2_bytes = 0;
  std::size_t shared_bytes_per_block = 0;  ///< the most that one block may opt in to
  int copy_engines = 0;
  int driver_version = 0;  ///< the newest CUDA that the driver knows, such as 13000
};

/// Visible GPUs; 0 where there is no driver. Never throws.
int device_count() noexcept;

/// The name under which every tool knows a GPU, whatever its ordinal is. Makes no context. Errors:
/// kCuda.
Result<std::string> device_uuid(int ordinal);

/// Errors: `kUnavailable` where the machine has no such device.
Result<DeviceInfo> device_info(int ordinal);

/// Bytes that could be allocated now on the current device.
Result<std::size_t> free_device_bytes();

/// Rates of the copy engine between pinned host memory and the current device, in bytes a second:
/// the ceilings of every pinned pipeline.
struct CopyRates {
  double to_device = 0;
  double to_host = 0;
};

/// Copies `bytes` back and forth and takes the median of `repeats`. Allocates and synchronises.
Result<CopyRates> measure_copy_rates(std::size_t bytes, int repeats, StreamView stream);

}  // namespace thaw::cuda
