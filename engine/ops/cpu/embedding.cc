#include <cmath>
#include <cstring>

#include "engine/base/half.h"
#include "engine/ops/cpu/dispatch.h"
#include "engine/ops/cpu/kernels.h"
#include "engine/ops/linear.h"

namespace thaw::ops {
namespace {

using cpu::kBlockCols;
using cpu::kLanes;

std::uint16_t read_u16(const std::byte* p) {
  std::uint16_t value;
  std::memcpy(&value, p, sizeof(value));
  return value;
}

float read_float(const std::byte* p) {
  float value;
  std::memcpy(&value, p, sizeof(value));
  return value;
}

/// Byte of column `col` (0 .. 31) of lane `lane` in 16 x 32 interleaved bytes.
std::uint8_t quad_byte(const std::byte* quads, int lane, int col) {
  return static_cast<std::uint8_t>(quads[(col / 4) * 64 + lane * 4 + col % 4]);
}

int nibble(const std::byte* quads, int lane, int col) {
  const std::uint8_t both = quad_byte(quads, lane, col % 16);
  return col < 16 ? both & 15 : both >> 4;
}

/// One block of 32 columns of one row.
void expand_block(Packing packing, const std::byte* panel, std::int64_t block, int lane,
                  float* out) {
  switch (packing) {
    case Packing::kPanelQ4Scale16: {
      const std::byte* p = panel + block * 320;
      const float scale = f16_to_float(read_u16(p + 2 * lane));
      const float minimum = f16_to_float(read_u16(p + 32 + 2 * lane));
      for (int k = 0; k < kBlockCols; ++k)
        out[k] = std::fma(scale, static_cast<float>(nibble(p + 64, lane, k)), minimum);
      return;
    }
    case Packing::kPanelQ4Scale32: {
      const std::byte* p = panel + block * 384;
      const float scale = read_float(p + 4 * lane);
      const float minimum = read_float(p + 64 + 4 * lane);
      for (int k = 0; k < kBlockCols; ++k)
        out[k] = std::fma(scale, static_cast<float>(nibble(p + 128, lane, k)), minimum);
      return;
    }
    case Packing::kPanelQ8: {
      const std::byte* p = panel + block * 544;
      const float scale = f16_to_float(read_u16(p + 2 * lane));
      for (int k = 0; k < kBlockCols; ++k)
        out[k] = scale * static_cast<float>(quad_byte(p + 32, lane, k) - 128);
      return;
    }
    case Packing::kPanelQ6: {
      const std::byte* p = panel + block * 640;
      for (int k = 0; k < kBlockCols; ++k) {
        const float scale = read_float(p + 4 * lane + (k < 16 ? 0 : 64));
        out[k] = scale * static_cast<float>(quad_byte(p + 128, lane, k) - 32);
      }
      return;
    }
    default:
      return;
  }
}

void expand_row(const WeightView& table, std::int64_t row, float* out) {
  if (table.packing == Packing::kVectorF32) {
    std::memcpy(out, table.data + row * table.cols * 4, static_cast<std::size_t>(table.cols) * 4);
    return;
  }
  const std::int64_t panel_index = row / kLanes;
  const int lane = static_cast<int>(row % kLanes);
  const std::byte* panel = table.data + packed_bytes(table.packing, kLanes, table.cols) *
                                            static_cast<std::size_t>(panel_index);
  if (is_quantized(table.packing)) {
    for (std::int64_t block = 0; block < table.cols / kBlockCols; ++block)
      expand_block(table.packing, panel, block, lane, out + block * kBlockCols);
    return;
  }
  for (std::int64_t k = 0; k < table.cols; ++k) {
    const std::int64_t element = k * kLanes + lane;
    switch (table.packing) {
      case Packing::kPanelF32:
        out[k] = read_float(panel + 4 * element);
        break;
      case Packing::kPanelF16:
        out[k] = f16_to_float(read_u16(panel + 2 * element));
        break;
      default:
        out[k] = bf16_to_float(read_u16(panel + 2 * element));
        break;
    }
  }
}

}  // namespace

void embedding(Device& device, const WeightView& table, std::span<const std::int32_t> ids,
               float* out) {
  CpuDevice& cpu = cpu::require_cpu(device);
  const auto expand = [&](int row) {
    expand_row(table, ids[static_cast<std::size_t>(row)], out + row * table.cols);
  };
  const int rows = static_cast<int>(ids.size());
  if (rows <= 2) {
    for (int row = 0; row < rows; ++row)
      expand(row);
  } else {
    cpu::parallel_for(cpu, rows, expand);
  }
}

}  // namespace thaw::ops
