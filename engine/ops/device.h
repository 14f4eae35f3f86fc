#pragma once

#include <memory>
#include <string>

#include "engine/base/result.h"
#include "engine/base/thread_pool.h"

namespace thaw::ops {

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
  /// `isa` empty picks the best the processor has; the error names what it lacks.
  static Result<std::unique_ptr<CpuDevice>> create(int num_threads, const std::string& isa = "");

  DeviceKind kind() const override { return DeviceKind::kCpu; }
  std::string kernel_set() const override;
  CpuIsa isa() const { return isa_; }
  ThreadPool& threads() { return threads_; }

 private:
  CpuDevice(int num_threads, CpuIsa isa) : threads_(num_threads), isa_(isa) {}
  ThreadPool threads_;
  CpuIsa isa_;
};

}  // namespace thaw::ops
