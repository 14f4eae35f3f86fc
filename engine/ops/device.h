#pragma once

#include <memory>
#include <string>

#include "engine/base/result.h"
#include "engine/base/thread_pool.h"

namespace thaw::ops {

namespace cpu {
struct Kernels;
class Scratch;
}  // namespace cpu

enum class DeviceKind { kCpu, kCuda };

/// Instruction sets of the CPU kernels. All of them give the same bits (docs/exactness.md); they
/// differ in speed only.
enum class CpuIsa { kGeneric, kAvx2, kAvx512Vnni };

/// Where operations run. Operations take a Device first and dispatch on its kind.
class Device {
 public:
  virtual ~Device() = default;
  virtual DeviceKind kind() const = 0;
  /// Names the arithmetic, part of every cache root and of system_fingerprint: "cpu-1".
  virtual std::string kernel_set() const = 0;
};

class CpuDevice final : public Device {
 public:
  /// `isa` is "generic", "avx2" or "avx512vnni"; empty picks the best that the processor has.
  /// Errors: num_threads below 1, an unknown name, an instruction set that this processor or build
  /// lacks.
  static Result<std::unique_ptr<CpuDevice>> create(int num_threads, const std::string& isa = "");

  ~CpuDevice() override;
  DeviceKind kind() const override { return DeviceKind::kCpu; }
  std::string kernel_set() const override;
  CpuIsa isa() const { return isa_; }
  ThreadPool& threads() { return threads_; }
  /// For the operations themselves.
  const cpu::Kernels& kernels() const { return kernels_; }
  cpu::Scratch& scratch() { return *scratch_; }

 private:
  CpuDevice(int num_threads, CpuIsa isa);
  ThreadPool threads_;
  CpuIsa isa_;
  const cpu::Kernels& kernels_;
  std::unique_ptr<cpu::Scratch> scratch_;
};

/// "generic", "avx2", "avx512vnni".
const char* cpu_isa_name(CpuIsa isa);

}  // namespace thaw::ops
