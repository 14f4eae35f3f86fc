#include "engine/cuda/device_info.h"

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "engine/cuda/buffer.h"
#include "engine/cuda/check.h"

namespace thaw::cuda {
namespace {

int attribute(cudaDeviceAttr which, int ordinal) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, ordinal), "device attribute");
  return value;
}

}  // namespace

int device_count() noexcept {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return count;
}

Result<DeviceInfo> device_info(int ordinal) try {
  const int count = device_count();
  if (ordinal < 0 || ordinal >= count)
    return make_error(Errc::kUnavailable, "CUDA device " + std::to_string(ordinal) +
                                              "; this machine has " + std::to_string(count));
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, ordinal), "device properties");
  DeviceInfo info;
  info.ordinal = ordinal;
  info.name = properties.name;
  info.compute_major = properties.major;
  info.compute_minor = properties.minor;
  info.multiprocessors = properties.multiProcessorCount;
  info.total_bytes = properties.totalGlobalMem;
  info.l2_bytes = static_cast<std::size_t>(properties.l2CacheSize);
  info.shared_bytes_per_block =
      static_cast<std::size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, ordinal));
  info.copy_engines = attribute(cudaDevAttrAsyncEngineCount, ordinal);
  check(cudaDriverGetVersion(&info.driver_version), "driver version");
  return info;
} catch (const Exception& failure) {
  return failure.error();
}

Result<std::string> device_uuid(int ordinal) try {
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, ordinal), "device properties");
  std::string name = "GPU-";
  for (int i = 0; i < 16; ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) name += '-';
    char digits[3];
    std::snprintf(digits, sizeof digits, "%02x",
                  static_cast<unsigned>(static_cast<unsigned char>(properties.uuid.bytes[i])));
    name += digits;
  }
  return name;
} catch (const Exception& failure) {
  return failure.error();
}

Result<std::size_t> free_device_bytes() try {
  std::size_t free_bytes = 0;
  std::size_t total_bytes = 0;
  check(cudaMemGetInfo(&free_bytes, &total_bytes), "memory of the device");
  return free_bytes;
} catch (const Exception& failure) {
  return failure.error();
}

Result<CopyRates> measure_copy_rates(std::size_t bytes, int repeats, StreamView stream) try {
  if (bytes == 0 || repeats < 1)
    return make_error(Errc::kInvalidArgument, std::to_string(repeats) + " copies of " +
                                                  std::to_string(bytes) +
                                                  " bytes; both must be at least 1");
  const PinnedBuffer<std::byte> host(bytes);
  std::fill(host.span().begin(), host.span().end(), std::byte{1});
  const DeviceBuffer<std::byte> device(bytes, stream);
  Event start(Event::Timing::kOn);
  Event stop(Event::Timing::kOn);
  const auto median_rate = [&](bool to_device) {
    std::vector<float> times;
    for (int i = 0; i <= repeats; ++i) {
      start.record(stream);
      if (to_device)
        copy_to_device<std::byte>(host.span(), device, stream);
      else
        copy_to_host<std::byte>(device, host.span(), stream);
      stop.record(stream);
      stop.synchronize();
      if (i > 0) times.push_back(stop.milliseconds_since(start));  // the first one warms up
    }
    std::nth_element(times.begin(), times.begin() + repeats / 2, times.end());
    return static_cast<double>(bytes) / (static_cast<double>(times[repeats / 2]) * 1e-3);
  };
  CopyRates rates;
  rates.to_device = median_rate(true);
  rates.to_host = median_rate(false);
  return rates;
} catch (const Exception& failure) {
  return failure.error();
}

}  // namespace thaw::cuda
