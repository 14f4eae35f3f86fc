#include <cmath>
#include <cstring>

#include "engine/base/half.h"
#include "engine/checkpoint/dequantize.h"
#include "engine/ops/cpu/dispatch.h"
#include "engine/ops/cpu/kernels.h"
#include "engine/ops/linear.h"

namespace thaw::ops {
namespace {

using cpu::kBlockCols;
using cpu::kLanes;

float read_float(const std::byte* p) {
  float value;
  std::memcpy(&value, p, sizeof(value));
  return value;
}

/// Byte of column `col` (0 .. 31) of lane `lane` in 16 x 32 interleaved bytes.
std::uint8_t quad_byte(const std::byte* quads, int lane, int col) {
  return static_cast<std::uint8_t>(quads[(col / 4) * 64 + lane * 4 + col % 4]);
}

/// Bit `col / 4` of the byte of `col` in 64 bytes: the high bit of a quant.
int high_bit(const std::byte* bits, int lane, int col) {
  return static_cast<std::uint8_t>(bits[lane * 4 + col % 4]) >> (col / 4) & 1;
}

/// Two low bits of column `col` in 128 bytes.
int pair_of_bits(const std::byte* pairs, int lane, int col) {
  const std::byte four = pairs[64 * (col / 16) + lane * 4 + col % 4];
  return static_cast<std::uint8_t>(four) >> 2 * (col % 16 / 4) & 3;
}

int nibble(const std::byte* quads, int lane, int col) {
  const std::uint8_t both = quad_byte(quads, lane, col % 16);
  return col < 16 ? both & 15 : both >> 4;
}

int fivebit(const std::byte* quants, int lane, int col) {
  return nibble(quants, lane, col) | high_bit(quants + 256, lane, col) << 4;
}

constexpr std::int64_t kUnitBlocks = cpu::kSuperCols / kBlockCols;

/// Block `j` of a unit of 256 columns, of one row.
void expand_super_block(Packing packing, const std::byte* unit, int j, int lane, float* out) {
  const auto byte_at = [unit, lane](int offset) {
    return static_cast<std::uint8_t>(unit[offset + lane]);
  };
  for (int k = 0; k < kBlockCols; ++k) {
    const int half = k < 16 ? 0 : 16;
    if (packing == Packing::kPanelQ3Super) {
      const float d = f16_to_float(read_u16(unit + 1792 + 2 * lane));
      const std::byte* quants = unit + 256 + 192 * j;
      const int q = pair_of_bits(quants, lane, k) | high_bit(quants + 128, lane, k) << 2;
      out[k] = d * static_cast<float>(static_cast<std::int8_t>(byte_at(32 * j + half))) *
               static_cast<float>(q - 4);
      continue;
    }
    const bool two = packing == Packing::kPanelQ2Super;
    const int scale = two ? byte_at(64 + 32 * j + half) & 15 : byte_at(64 + 32 * j);
    const int minimum = two ? byte_at(64 + 32 * j + half) >> 4 : byte_at(80 + 32 * j);
    const int q =
        two ? pair_of_bits(unit + 320 + 128 * j, lane, k) : fivebit(unit + 320 + 320 * j, lane, k);
    const float d = f16_to_float(read_u16(unit + 2 * lane));
    const float dmin = f16_to_float(read_u16(unit + 32 + 2 * lane));
    out[k] = std::fma(d * static_cast<float>(scale), static_cast<float>(q),
                      -(dmin * static_cast<float>(minimum)));
  }
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
    case Packing::kPanelQ5Scale16: {
      const std::byte* p = panel + block * 384;
      const float scale = f16_to_float(read_u16(p + 2 * lane));
      const float minimum = f16_to_float(read_u16(p + 32 + 2 * lane));
      for (int k = 0; k < kBlockCols; ++k)
        out[k] = std::fma(scale, static_cast<float>(fivebit(p + 64, lane, k)), minimum);
      return;
    }
    case Packing::kPanelIq4: {
      const std::byte* p = panel + block * 288;
      const float scale = f16_to_float(read_u16(p + 2 * lane));
      for (int k = 0; k < kBlockCols; ++k) {
        const auto index = static_cast<std::size_t>(nibble(p + 32, lane, k));
        out[k] = scale * static_cast<float>(checkpoint::kIq4Values[index]);
      }
      return;
    }
    case Packing::kPanelQ5Super:
    case Packing::kPanelQ2Super:
    case Packing::kPanelQ3Super: {
      const std::byte* unit =
          panel + block / kUnitBlocks *
                      static_cast<std::int64_t>(packed_bytes(packing, kLanes, cpu::kSuperCols));
      expand_super_block(packing, unit, static_cast<int>(block % kUnitBlocks), lane, out);
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
