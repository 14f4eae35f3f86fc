#include "engine/ops/device.h"

#include <array>
#include <string>
#include <utility>

#include "engine/ops/cpu/dispatch.h"
#include "engine/ops/cpu/kernels.h"
#include "engine/ops/cpu/scratch.h"

namespace thaw::ops {
namespace {

bool cpu_has(CpuIsa isa) {
#if defined(THAW_X86_KERNELS)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  if (isa == CpuIsa::kAvx2) return avx2;
  if (isa == CpuIsa::kAvx512Vnni) {
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni");
  }
#endif
  return isa == CpuIsa::kGeneric;
}

const cpu::Kernels& kernels_of(CpuIsa isa) {
#if defined(THAW_X86_KERNELS)
  if (isa == CpuIsa::kAvx512Vnni) return cpu::avx512_kernels();
  if (isa == CpuIsa::kAvx2) return cpu::avx2_kernels();
#endif
  static_cast<void>(isa);
  return cpu::generic_kernels();
}

constexpr std::array kBestFirst = {CpuIsa::kAvx512Vnni, CpuIsa::kAvx2, CpuIsa::kGeneric};

Result<CpuIsa> choose_isa(const std::string& name) {
  for (const CpuIsa isa : kBestFirst) {
    if (name.empty() ? cpu_has(isa) : name == cpu_isa_name(isa)) {
      if (cpu_has(isa)) return isa;
      return make_error(
          Errc::kUnsupported,
          "instruction set " + name +
              ": this processor (or build) lacks it; leave it empty for the best one");
    }
  }
  return make_error(Errc::kInvalidArgument, "instruction set \"" + name +
                                                "\" is unknown; it may be generic, avx2 or "
                                                "avx512vnni");
}

}  // namespace

const char* cpu_isa_name(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kAvx2:
      return "avx2";
    case CpuIsa::kAvx512Vnni:
      return "avx512vnni";
    case CpuIsa::kGeneric:
      break;
  }
  return "generic";
}

CpuDevice::CpuDevice(int num_threads, CpuIsa isa)
    : threads_(num_threads),
      isa_(isa),
      kernels_(kernels_of(isa)),
      scratch_(std::make_unique<cpu::Scratch>()) {}

CpuDevice::~CpuDevice() = default;

Result<std::unique_ptr<CpuDevice>> CpuDevice::create(int num_threads, const std::string& isa) {
  if (num_threads < 1) {
    return make_error(
        Errc::kInvalidArgument,
        "number of threads is " + std::to_string(num_threads) + "; it must be at least 1");
  }
  const Result<CpuIsa> chosen = choose_isa(isa);
  if (!chosen) return chosen.error();
  return std::unique_ptr<CpuDevice>(new CpuDevice(num_threads, *chosen));  // private constructor
}

std::string CpuDevice::kernel_set() const {
  return "cpu-1";
}

namespace cpu {

CpuDevice& require_cpu(Device& device) {
  if (device.kind() != DeviceKind::kCpu) {
    throw Exception(make_error(Errc::kUnsupported, "this build has CPU operations only"));
  }
  return static_cast<CpuDevice&>(device);
}

}  // namespace cpu
}  // namespace thaw::ops
