#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "engine/base/half.h"
#include "engine/checkpoint/dequantize.h"
#include "engine/checkpoint/quantize.h"
#include "engine/ops/cpu/kernels.h"
#include "engine/ops/packed_weight.h"

// Block layouts of the stored formats: the GGUF specification and ggml's type definitions.

namespace thaw::ops {
namespace {

using checkpoint::DType;
using cpu::kBlockCols;
using cpu::kLanes;
using cpu::kSuperCols;

constexpr std::uint32_t kLowNibbles = 0x0f0f0f0fu;

std::uint32_t read_u32(const std::byte* p) {
  std::uint32_t value;
  std::memcpy(&value, p, sizeof(value));
  return value;
}
float read_f16(const std::byte* p) {
  return f16_to_float(read_u16(p));
}
template <typename T>
void write(std::byte* p, T value) {
  std::memcpy(p, &value, sizeof(value));
}

/// Bytes of 16 rows x `cols` columns.
std::size_t panel_bytes(Packing packing, std::int64_t cols) {
  const auto width = static_cast<std::size_t>(cols);
  switch (packing) {
    case Packing::kVectorF32:
    case Packing::kPanelF32:
      return width * kLanes * 4;
    case Packing::kPanelF16:
    case Packing::kPanelBF16:
    case Packing::kTiledBF16:
      return width * kLanes * 2;
    case Packing::kPanelQ4Scale16:
      return width / kBlockCols * 320;
    case Packing::kPanelQ4Scale32:
      return width / kBlockCols * 384;
    case Packing::kPanelQ8:
      return width / kBlockCols * 544;
    case Packing::kPanelQ6:
      return width / kBlockCols * 640;
    case Packing::kPanelQ5Scale16:
      return width / kBlockCols * 384;
    case Packing::kPanelQ5Super:
      return width / kSuperCols * 2880;
    case Packing::kPanelQ2Super:
      return width / kSuperCols * 1344;
    case Packing::kPanelQ3Super:
      return width / kSuperCols * 1824;
    case Packing::kPanelIq4:
      return width / kBlockCols * 288;
  }
  return 0;
}

/// Columns that one packed block of `packing` made from `source` needs together.
int column_unit(DType source, Packing packing) {
  const int stored = checkpoint::dtype_block_elements(source);
  return is_quantized(packing) ? std::max(stored, kBlockCols) : stored;
}

bool is_float(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16;
}

/// Whether packing means rounding.
bool rounds(DType source, Packing packing) {
  const bool is_target = packing == Packing::kPanelQ8 || packing == Packing::kPanelF16 ||
                         packing == Packing::kPanelBF16;
  return is_float(source) && is_target && packing != choose_packing(source, ComputeMode::kNative);
}

bool can_pack(DType source, Packing packing) {
  return rounds(source, packing) || packing == Packing::kVectorF32 ||
         packing == Packing::kPanelF32 || packing == choose_packing(source, ComputeMode::kNative);
}

// Each of these writes one stored row into lane `lane` of a zeroed panel. A packed block keeps four
// columns of a row in one 32-bit word at [group of four columns][lane].

void pack_q8_0(const std::byte* row, std::int64_t cols, int lane, std::byte* panel) {
  for (std::int64_t block = 0; block < cols / 32; ++block, row += 34, panel += 544) {
    write(panel + 2 * lane, read_u16(row));
    for (int g = 0; g < 8; ++g)
      write(panel + 32 + 64 * g + 4 * lane, read_u32(row + 2 + 4 * g) ^ 0x80808080u);
  }
}

/// -8 * scale as f16 bits; exact but for overflow, which stays infinite.
std::uint16_t minimum_of_q4_0(std::uint16_t scale) {
  return float_to_f16(-8.0F * f16_to_float(scale));
}

void pack_q4(DType source, const std::byte* row, std::int64_t cols, int lane, std::byte* panel) {
  const int header = source == DType::kQ4_0 ? 2 : 4;
  for (std::int64_t block = 0; block < cols / 32; ++block, row += header + 16, panel += 320) {
    const std::uint16_t scale = read_u16(row);
    write(panel + 2 * lane, scale);
    write(panel + 32 + 2 * lane,
          source == DType::kQ4_0 ? minimum_of_q4_0(scale) : read_u16(row + 2));
    for (int g = 0; g < 4; ++g)
      write(panel + 64 + 64 * g + 4 * lane, read_u32(row + header + 4 * g));
  }
}

void pack_q4_k(const std::byte* row, std::int64_t cols, int lane, std::byte* panel) {
  for (std::int64_t super = 0; super < cols / 256; ++super, row += 144) {
    const float d = read_f16(row);
    const float dmin = read_f16(row + 2);
    const auto* packed = reinterpret_cast<const std::uint8_t*>(row + 4);
    for (int sub = 0; sub < 8; ++sub, panel += 384) {
      const checkpoint::ScaleMin small = checkpoint::scale_min_k4(packed, sub);
      write(panel + 4 * lane, d * static_cast<float>(small.scale));
      write(panel + 64 + 4 * lane, -(dmin * static_cast<float>(small.minimum)));
      const std::byte* quants = row + 16 + 32 * (sub / 2);
      const int shift = sub % 2 == 0 ? 0 : 4;
      for (int g = 0; g < 4; ++g) {
        const std::uint32_t low = read_u32(quants + 4 * g) >> shift & kLowNibbles;
        const std::uint32_t high = read_u32(quants + 16 + 4 * g) >> shift & kLowNibbles;
        write(panel + 128 + 64 * g + 4 * lane, low | high << 4);
      }
    }
  }
}

void pack_q6_k(const std::byte* row, std::int64_t cols, int lane, std::byte* panel) {
  for (std::int64_t super = 0; super < cols / 256; ++super, row += 210) {
    const float d = read_f16(row + 208);
    const auto* scales = reinterpret_cast<const std::int8_t*>(row + 192);
    for (int part = 0; part < 8; ++part, panel += 640) {  // 32 columns each
      const int quarter = part % 4;
      const std::byte* low = row + 64 * (part / 4) + 32 * (quarter % 2);
      const std::byte* high = row + 128 + 32 * (part / 4);
      const int low_shift = quarter < 2 ? 0 : 4;
      write(panel + 4 * lane, d * static_cast<float>(scales[2 * part]));
      write(panel + 64 + 4 * lane, d * static_cast<float>(scales[2 * part + 1]));
      for (int g = 0; g < 8; ++g) {
        const std::uint32_t bottom = read_u32(low + 4 * g) >> low_shift & kLowNibbles;
        const std::uint32_t top = read_u32(high + 4 * g) >> 2 * quarter & 0x03030303u;
        write(panel + 128 + 64 * g + 4 * lane, bottom | top << 4);
      }
    }
  }
}

// The layouts of quants below four bits and of single high bits: see load_pairs, load_fivebits and
// load_threebits of the kernels.

/// Low nibbles of 32 quants.
void write_nibbles(const std::uint8_t* q, int lane, std::byte* out) {
  for (int i = 0; i < 16; ++i) {
    write(out + 64 * (i / 4) + 4 * lane + i % 4,
          static_cast<std::uint8_t>((q[i] & 15) | (q[i + 16] & 15) << 4));
  }
}
/// Low pairs of bits of 32 quants.
void write_pairs(const std::uint8_t* q, int lane, std::byte* out) {
  for (int half = 0; half < 2; ++half) {
    for (int i = 0; i < 4; ++i) {
      int four = 0;
      for (int g = 0; g < 4; ++g)
        four |= (q[16 * half + 4 * g + i] & 3) << 2 * g;
      write(out + 64 * half + 4 * lane + i, static_cast<std::uint8_t>(four));
    }
  }
}
/// Bit number `bit` of 32 quants.
void write_high_bits(const std::uint8_t* q, int bit, int lane, std::byte* out) {
  for (int i = 0; i < 4; ++i) {
    int eight = 0;
    for (int g = 0; g < 8; ++g)
      eight |= (q[4 * g + i] >> bit & 1) << g;
    write(out + 4 * lane + i, static_cast<std::uint8_t>(eight));
  }
}

/// -16 * scale, as minimum_of_q4_0.
std::uint16_t minimum_of_q5_0(std::uint16_t scale) {
  return float_to_f16(-16.0F * f16_to_float(scale));
}

void pack_q5(DType source, const std::byte* row, std::int64_t cols, int lane, std::byte* panel) {
  const int header = source == DType::kQ5_0 ? 2 : 4;
  for (std::int64_t block = 0; block < cols / 32; ++block, row += header + 20, panel += 384) {
    const std::uint16_t scale = read_u16(row);
    write(panel + 2 * lane, scale);
    write(panel + 32 + 2 * lane,
          source == DType::kQ5_0 ? minimum_of_q5_0(scale) : read_u16(row + 2));
    const std::uint32_t high = read_u32(row + header);
    std::uint8_t q[32];
    for (int i = 0; i < 32; ++i)
      q[i] = static_cast<std::uint8_t>((high >> i & 1) << 4);
    for (int g = 0; g < 4; ++g)
      write(panel + 64 + 64 * g + 4 * lane, read_u32(row + header + 4 + 4 * g));
    write_high_bits(q, 4, lane, panel + 64 + 256);
  }
}

void pack_iq4_nl(const std::byte* row, std::int64_t cols, int lane, std::byte* panel) {
  for (std::int64_t block = 0; block < cols / 32; ++block, row += 18, panel += 288) {
    write(panel + 2 * lane, read_u16(row));
    for (int g = 0; g < 4; ++g)
      write(panel + 32 + 64 * g + 4 * lane, read_u32(row + 2 + 4 * g));
  }
}

void pack_q5_k(const std::byte* row, std::int64_t cols, int lane, std::byte* panel) {
  for (std::int64_t super = 0; super < cols / 256; ++super, row += 176, panel += 2880) {
    write(panel + 2 * lane, read_u16(row));
    write(panel + 32 + 2 * lane, read_u16(row + 2));
    const auto* packed = reinterpret_cast<const std::uint8_t*>(row + 4);
    const auto* high = reinterpret_cast<const std::uint8_t*>(row + 16);
    for (int sub = 0; sub < 8; ++sub) {
      const checkpoint::ScaleMin small = checkpoint::scale_min_k4(packed, sub);
      write(panel + 64 + 32 * sub + lane, static_cast<std::uint8_t>(small.scale));
      write(panel + 80 + 32 * sub + lane, static_cast<std::uint8_t>(small.minimum));
      const auto* nibbles = reinterpret_cast<const std::uint8_t*>(row + 48 + 32 * (sub / 2));
      std::uint8_t q[32];
      for (int i = 0; i < 32; ++i) {
        q[i] = static_cast<std::uint8_t>((nibbles[i] >> 4 * (sub % 2) & 15) | (high[i] >> sub & 1)
                                                                                  << 4);
      }
      std::byte* quants = panel + 320 + 320 * sub;
      write_nibbles(q, lane, quants);
      write_high_bits(q, 4, lane, quants + 256);
    }
  }
}

/// 32 quants of Q2_K or of the low bits of Q3_K, from its 64 bytes.
void read_pairs(const std::byte* pairs, int part, std::uint8_t* q) {
  const auto* from = reinterpret_cast<const std::uint8_t*>(pairs) + 32 * (part / 4);
  for (int i = 0; i < 32; ++i)
    q[i] = from[i] >> 2 * (part % 4) & 3;
}

void pack_q2_k(const std::byte* row, std::int64_t cols, int lane, std::byte* panel) {
  for (std::int64_t super = 0; super < cols / 256; ++super, row += 84, panel += 1344) {
    write(panel + 2 * lane, read_u16(row + 80));
    write(panel + 32 + 2 * lane, read_u16(row + 82));
    for (int half = 0; half < 16; ++half)
      panel[64 + 16 * half + lane] = row[half];
    for (int part = 0; part < 8; ++part) {
      std::uint8_t q[32];
      read_pairs(row + 16, part, q);
      write_pairs(q, lane, panel + 320 + 128 * part);
    }
  }
}

void pack_q3_k(const std::byte* row, std::int64_t cols, int lane, std::byte* panel) {
  for (std::int64_t super = 0; super < cols / 256; ++super, row += 110, panel += 1824) {
    write(panel + 1792 + 2 * lane, read_u16(row + 108));
    const auto* scales = reinterpret_cast<const std::uint8_t*>(row + 96);
    const auto* high = reinterpret_cast<const std::uint8_t*>(row);
    for (int half = 0; half < 16; ++half) {
      write(panel + 16 * half + lane,
            static_cast<std::int8_t>(checkpoint::scale_q3_k(scales, half)));
    }
    for (int part = 0; part < 8; ++part) {
      std::uint8_t q[32];
      read_pairs(row + 32, part, q);
      for (int i = 0; i < 32; ++i)
        q[i] = static_cast<std::uint8_t>(q[i] | (high[i] >> part & 1) << 2);
      std::byte* quants = panel + 256 + 192 * part;
      write_pairs(q, lane, quants);
      write_high_bits(q, 2, lane, quants + 128);
    }
  }
}

void pack_f16_bits(const std::byte* row, std::int64_t cols, int lane, std::byte* panel) {
  for (std::int64_t k = 0; k < cols; ++k)
    write(panel + 2 * (k * kLanes + lane), read_u16(row + 2 * k));
}

void pack_f32(DType source, std::span<const std::byte> row, std::int64_t cols, int lane,
              std::byte* panel) {
  thread_local std::vector<float> expanded;
  expanded.resize(static_cast<std::size_t>(cols));
  checkpoint::dequantize(source, row, expanded);
  for (std::int64_t k = 0; k < cols; ++k)
    write(panel + 4 * (k * kLanes + lane), expanded[static_cast<std::size_t>(k)]);
}

/// Each value to the nearest of 16 bits; false where one is not finite afterwards.
bool pack_rounded_16(std::span<const float> row, Packing packing, int lane, std::byte* panel) {
  const bool is_f16 = packing == Packing::kPanelF16;
  bool finite = true;
  for (std::size_t k = 0; k < row.size(); ++k) {
    const std::uint16_t bits = is_f16 ? float_to_f16(row[k]) : float_to_bf16(row[k]);
    finite = finite && std::isfinite(is_f16 ? f16_to_float(bits) : bf16_to_float(bits));
    write(panel + 2 * (k * kLanes + static_cast<std::size_t>(lane)), bits);
  }
  return finite;
}

/// Rounds a float row on the way; false where that cannot be.
bool pack_rounded(DType source, Packing packing, std::span<const std::byte> row, std::int64_t cols,
                  int lane, std::byte* panel) {
  thread_local std::vector<float> expanded;
  thread_local std::vector<std::byte> rounded;
  expanded.resize(static_cast<std::size_t>(cols));
  checkpoint::dequantize(source, row, expanded);
  if (packing != Packing::kPanelQ8) return pack_rounded_16(expanded, packing, lane, panel);
  rounded.resize(expanded.size() / 32 * checkpoint::dtype_block_bytes(DType::kQ8_0));
  if (!checkpoint::quantize_q8_0(expanded, rounded)) return false;
  pack_q8_0(rounded.data(), cols, lane, panel);
  return true;
}

void pack_row(DType source, Packing packing, std::span<const std::byte> row, std::int64_t cols,
              int lane, std::byte* panel) {
  switch (packing) {
    case Packing::kPanelF16:
    case Packing::kPanelBF16:
      return pack_f16_bits(row.data(), cols, lane, panel);
    case Packing::kPanelQ4Scale16:
      return pack_q4(source, row.data(), cols, lane, panel);
    case Packing::kPanelQ4Scale32:
      return pack_q4_k(row.data(), cols, lane, panel);
    case Packing::kPanelQ8:
      return pack_q8_0(row.data(), cols, lane, panel);
    case Packing::kPanelQ6:
      return pack_q6_k(row.data(), cols, lane, panel);
    case Packing::kPanelQ5Scale16:
      return pack_q5(source, row.data(), cols, lane, panel);
    case Packing::kPanelQ5Super:
      return pack_q5_k(row.data(), cols, lane, panel);
    case Packing::kPanelQ2Super:
      return pack_q2_k(row.data(), cols, lane, panel);
    case Packing::kPanelQ3Super:
      return pack_q3_k(row.data(), cols, lane, panel);
    case Packing::kPanelIq4:
      return pack_iq4_nl(row.data(), cols, lane, panel);
    case Packing::kVectorF32:
    case Packing::kPanelF32:
      return pack_f32(source, row, cols, lane, panel);
    case Packing::kTiledBF16:  // pack_tiles(): can_pack() refuses it here
      return;
  }
}

Error size_error(const char* what, std::size_t given, std::size_t needed) {
  return make_error(Errc::kInvalidArgument, std::string("pack_matrix: ") + what + " is " +
                                                std::to_string(given) + " bytes, needed are " +
                                                std::to_string(needed));
}

}  // namespace

bool is_quantized(Packing packing) {
  return packing >= Packing::kPanelQ4Scale16 && packing <= Packing::kPanelIq4;
}

Packing choose_packing(DType source, ComputeMode mode) {
  if (mode == ComputeMode::kExact32) return Packing::kPanelF32;
  switch (source) {
    case DType::kF16:
      return Packing::kPanelF16;
    case DType::kBF16:
      return Packing::kPanelBF16;
    case DType::kQ8_0:
      return Packing::kPanelQ8;
    case DType::kQ4_0:
    case DType::kQ4_1:
      return Packing::kPanelQ4Scale16;
    case DType::kQ4_K:
      return Packing::kPanelQ4Scale32;
    case DType::kQ6_K:
      return Packing::kPanelQ6;
    case DType::kQ5_0:
    case DType::kQ5_1:
      return Packing::kPanelQ5Scale16;
    case DType::kQ5_K:
      return Packing::kPanelQ5Super;
    case DType::kQ2_K:
      return Packing::kPanelQ2Super;
    case DType::kQ3_K:
      return Packing::kPanelQ3Super;
    case DType::kIQ4_NL:
      return Packing::kPanelIq4;
    case DType::kF32:
      break;
  }
  return Packing::kPanelF32;
}

Packing choose_packing(DType source, std::int64_t cols, const PackingOptions& options) {
  if (options.device == DeviceKind::kCuda) return Packing::kTiledBF16;
  const Packing stored = choose_packing(source, options.mode);
  if (options.mode != ComputeMode::kNative || !is_float(source)) return stored;
  switch (options.quantize) {
    case Quantize::kNone:
      return stored;
    case Quantize::kF16:
      return Packing::kPanelF16;
    case Quantize::kBF16:
      return Packing::kPanelBF16;
    case Quantize::kQ8_0:
      return cols % kBlockCols == 0 ? Packing::kPanelQ8 : stored;
  }
  return stored;
}

std::size_t packed_bytes(Packing packing, std::int64_t rows, std::int64_t cols) {
  if (packing == Packing::kVectorF32) return static_cast<std::size_t>(rows * cols) * 4;
  const std::int64_t panels = (rows + kLanes - 1) / kLanes;
  return static_cast<std::size_t>(panels) * panel_bytes(packing, cols);
}

Result<void> pack_matrix(DType source, std::span<const std::byte> stored, std::int64_t rows,
                         std::int64_t cols, Packing packing, std::span<std::byte> out,
                         ThreadPool& threads) {
  const std::string source_name(checkpoint::dtype_name(source));
  if (!can_pack(source, packing)) {
    return make_error(Errc::kInvalidArgument,
                      "pack_matrix: " + source_name + " cannot be packed as packing " +
                          std::to_string(static_cast<std::uint32_t>(packing)));
  }
  const int unit = column_unit(source, packing);
  if (rows < 1 || cols < 1 || cols % unit != 0) {
    return make_error(Errc::kInvalidArgument, "pack_matrix: " + std::to_string(rows) + " x " +
                                                  std::to_string(cols) + " matrix of " +
                                                  source_name + ": columns must be a multiple of " +
                                                  std::to_string(unit));
  }
  const std::size_t row_bytes =
      static_cast<std::size_t>(cols / checkpoint::dtype_block_elements(source)) *
      checkpoint::dtype_block_bytes(source);
  const std::size_t stored_bytes = row_bytes * static_cast<std::size_t>(rows);
  if (stored.size() != stored_bytes) return size_error("the input", stored.size(), stored_bytes);
  const std::size_t out_bytes = packed_bytes(packing, rows, cols);
  if (out.size() != out_bytes) return size_error("the output", out.size(), out_bytes);

  if (packing == Packing::kVectorF32) {
    threads.parallel_for(static_cast<int>(rows), [&](int row) {
      const auto index = static_cast<std::size_t>(row);
      const auto width = static_cast<std::size_t>(cols);
      // Entries are 4-byte floats at any alignment: expand aside, then copy.
      std::vector<float> expanded(width);
      checkpoint::dequantize(source, stored.subspan(index * row_bytes, row_bytes), expanded);
      std::memcpy(out.data() + index * width * 4, expanded.data(), width * 4);
    });
    return {};
  }

  const std::size_t bytes = panel_bytes(packing, cols);
  std::atomic<bool> complete = true;
  threads.parallel_for(static_cast<int>((rows + kLanes - 1) / kLanes), [&](int index) {
    std::byte* panel = out.data() + static_cast<std::size_t>(index) * bytes;
    const std::int64_t first = static_cast<std::int64_t>(index) * kLanes;
    const int lanes = static_cast<int>(std::min<std::int64_t>(kLanes, rows - first));
    if (lanes < kLanes) std::memset(panel, 0, bytes);
    for (int lane = 0; lane < lanes; ++lane) {
      const auto row =
          stored.subspan(static_cast<std::size_t>(first + lane) * row_bytes, row_bytes);
      if (!rounds(source, packing)) {
        pack_row(source, packing, row, cols, lane, panel);
      } else if (!pack_rounded(source, packing, row, cols, lane, panel)) {
        complete = false;
      }
    }
  });
  if (!complete) {
    return make_error(Errc::kDataLoss,
                      std::string("pack_matrix: a weight is not finite, or too large for ") +
                          (packing == Packing::kPanelQ8    ? "Q8_0"
                           : packing == Packing::kPanelF16 ? "F16"
                                                           : "BF16"));
  }
  return {};
}

}  // namespace thaw::ops
