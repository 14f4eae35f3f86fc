#include "forkpool/worker/device_parts.h"

#include <utility>

#include "engine/base/device_name.h"

namespace thaw::forkpool::worker {

Result<std::unique_ptr<DeviceParts>> make_device_parts(const PartsRequest& request) {
  const auto device = parse_device(request.init->device);
  if (!device) return device.error();
  if (device->kind == DeviceName::Kind::kCpu) {
    if (request.init->tp_size == 1) return make_cpu_parts(request);
    return make_error(Errc::kUnsupported, "several ranks on the CPU; its threads share one image");
  }
#ifdef THAW_WITH_CUDA
  if (request.init->tp_size > 1) return make_cuda_group_parts(request);
  return make_cuda_parts(request, device->ordinal);
#else
  return make_error(Errc::kUnsupported, "device " + request.init->device +
                                            ": this build has no CUDA kernels (THAW_CUDA=ON)");
#endif
}

Result<void> run_follower(UniqueFd socket, const InitFrame& init, DeviceMemory inherited,
                          int weights_fd) {
#ifdef THAW_WITH_CUDA
  return run_cuda_follower(std::move(socket), init, std::move(inherited), weights_fd);
#else
  (void)socket;
  (void)inherited;
  (void)weights_fd;
  return make_error(Errc::kUnsupported,
                    "rank " + std::to_string(init.tp_rank) + ": this build has no CUDA kernels");
#endif
}

Result<ops::KvDType> parse_kv_dtype(const std::string& name) {
  if (name == "bf16") return ops::KvDType::kBF16;
  if (name == "f16") return ops::KvDType::kF16;
  if (name == "f32") return ops::KvDType::kF32;
  return make_error(Errc::kInvalidArgument, "KV dtype '" + name + "'; use bf16, f16 or f32");
}

Result<Mapping> map_inherited(int fd, MapAccess access, const std::string& what) {
  const auto size = fd_size_bytes(fd);
  if (!size) return make_error(size.error().code, what + ": " + size.error().message);
  // Where the pool has joined its pages into huge ones, this maps them as such.
  auto mapping = kvsnap::map_on_huge_boundary(fd, *size, access);
  if (!mapping) return make_error(mapping.error().code, what + ": " + mapping.error().message);
  return mapping;
}

}  // namespace thaw::forkpool::worker
