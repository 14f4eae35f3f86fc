#include "engine/ops/elementwise.h"

#include <algorithm>

#include "engine/ops/cpu/dispatch.h"
#include "engine/ops/cpu/kernels.h"

namespace thaw::ops {
namespace {

/// Below this many elements a second thread costs more than it saves.
constexpr std::int64_t kElementsPerTask = 16384;

/// Cuts [0, count) into ranges of a multiple of 16 elements (or rows) and runs body(begin, end).
template <typename Body>
void split_range(CpuDevice& device, std::int64_t count, std::int64_t per_task, const Body& body) {
  const std::int64_t tasks = (count + per_task - 1) / per_task;
  if (tasks <= 1) {
    body(std::int64_t{0}, count);
    return;
  }
  cpu::parallel_for(device, static_cast<int>(tasks), [&](int task) {
    const std::int64_t begin = task * per_task;
    body(begin, std::min(begin + per_task, count));
  });
}

std::int64_t rows_per_task(std::int64_t width) {
  return std::max<std::int64_t>(1, kElementsPerTask / std::max<std::int64_t>(1, width));
}

}  // namespace

void rms_norm(Device& device, const float* x, const float* weight, float eps, int num_rows,
              int width, float* out) {
  CpuDevice& cpu = cpu::require_cpu(device);
  split_range(cpu, num_rows, rows_per_task(width), [&](std::int64_t begin, std::int64_t end) {
    cpu.kernels().rms_norm(x + begin * width, weight, eps, static_cast<int>(end - begin), width,
                           out + begin * width);
  });
}

void add_bias(Device& device, float* x, const float* bias, int num_rows, int width) {
  CpuDevice& cpu = cpu::require_cpu(device);
  split_range(cpu, num_rows, rows_per_task(width), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row)
      cpu.kernels().add(x + row * width, bias, width);
  });
}

void add_in_place(Device& device, float* x, const float* y, std::int64_t count) {
  CpuDevice& cpu = cpu::require_cpu(device);
  split_range(cpu, count, kElementsPerTask, [&](std::int64_t begin, std::int64_t end) {
    cpu.kernels().add(x + begin, y + begin, end - begin);
  });
}

void swiglu(Device& device, const float* gate, const float* up, std::int64_t count, float* out) {
  CpuDevice& cpu = cpu::require_cpu(device);
  split_range(cpu, count, kElementsPerTask / 4, [&](std::int64_t begin, std::int64_t end) {
    cpu.kernels().swiglu(gate + begin, up + begin, end - begin, out + begin);
  });
}

void rope(Device& device, const RopeTable& table, std::span<const std::int32_t> positions,
          int num_heads, int head_dim, float* x) {
  CpuDevice& cpu = cpu::require_cpu(device);
  const std::int64_t width = static_cast<std::int64_t>(num_heads) * head_dim;
  const std::int64_t half = table.rotary_dim / 2;
  const auto rows = static_cast<std::int64_t>(positions.size());
  split_range(cpu, rows, rows_per_task(width), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      const std::int64_t entry = positions[static_cast<std::size_t>(row)] * half;
      cpu.kernels().rope_row(table.cos + entry, table.sin + entry, table.rotary_dim,
                             table.half_split, num_heads, head_dim, x + row * width);
    }
  });
}

}  // namespace thaw::ops
