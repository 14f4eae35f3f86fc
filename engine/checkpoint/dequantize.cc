#include "engine/checkpoint/dequantize.h"

#include <cstring>

#include "engine/base/half.h"

namespace thaw::checkpoint {
namespace {

std::uint16_t load_u16(const std::uint8_t* bytes) {
  return static_cast<std::uint16_t>(bytes[0] | bytes[1] << 8);
}

float load_f16(const std::uint8_t* bytes) {
  return f16_to_float(load_u16(bytes));
}

/// 32 elements: f16 scale, 32 signed bytes.
void expand_q8_0(const std::uint8_t* block, float* out) {
  const float scale = load_f16(block);
  for (int i = 0; i < 32; ++i)
    out[i] = scale * static_cast<float>(static_cast<std::int8_t>(block[2 + i]));
}

/// 32 elements: f16 scale, 16 bytes; byte i holds elements i (low nibble) and i + 16; q - 8.
void expand_q4_0(const std::uint8_t* block, float* out) {
  const float scale = load_f16(block);
  for (int i = 0; i < 16; ++i) {
    out[i] = scale * static_cast<float>((block[2 + i] & 15) - 8);
    out[i + 16] = scale * static_cast<float>((block[2 + i] >> 4) - 8);
  }
}

/// 32 elements: f16 scale, f16 minimum, 16 bytes as in Q4_0; q is unsigned.
void expand_q4_1(const std::uint8_t* block, float* out) {
  const float scale = load_f16(block);
  const float minimum = load_f16(block + 2);
  for (int i = 0; i < 16; ++i) {
    out[i] = scale * static_cast<float>(block[4 + i] & 15) + minimum;
    out[i + 16] = scale * static_cast<float>(block[4 + i] >> 4) + minimum;
  }
}

struct ScaleMin {
  int scale;
  int minimum;
};

/// Six-bit scale and minimum number `j` (0..7) of a Q4_K block. Bytes 0-3 hold the scales of
/// 0-3, bytes 4-7 their minima; the top two bits of these eight bytes and the nibbles of bytes 8-11
/// hold those of 4-7.
ScaleMin scale_min_k4(const std::uint8_t* packed, int j) {
  if (j < 4) return {packed[j] & 63, packed[j + 4] & 63};
  return {(packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4, (packed[j + 4] >> 4) | (packed[j] >> 6)
                                                                                       << 4};
}

/// 256 elements in eight sub-blocks of 32: f16 d, f16 dmin, 12 bytes of scales, 128 bytes of
/// nibbles; 32 bytes hold sub-block 2g in their low and 2g + 1 in their high nibbles.
void expand_q4_k(const std::uint8_t* block, float* out) {
  const float d = load_f16(block);
  const float dmin = load_f16(block + 2);
  const std::uint8_t* nibbles = block + 16;
  for (int sub = 0; sub < 8; ++sub) {
    const ScaleMin packed = scale_min_k4(block + 4, sub);
    const float scale = d * static_cast<float>(packed.scale);
    const float minimum = dmin * static_cast<float>(packed.minimum);
    const std::uint8_t* quants = nibbles + 32 * (sub / 2);
    const int shift = sub % 2 == 0 ? 0 : 4;
    for (int i = 0; i < 32; ++i)
      out[32 * sub + i] = scale * static_cast<float>(quants[i] >> shift & 15) - minimum;
  }
}

/// 256 elements in two halves of 128: low nibbles ql[128], two high bits qh[64], 16 signed scales
/// (one for 16 elements), f16 d; q - 32.
void expand_q6_k(const std::uint8_t* block, float* out) {
  const std::uint8_t* scales = block + 192;
  const float d = load_f16(block + 208);
  for (int half = 0; half < 2; ++half) {
    const std::uint8_t* low = block + 64 * half;
    const std::uint8_t* high = block + 128 + 32 * half;
    for (int quarter = 0; quarter < 4; ++quarter) {
      for (int i = 0; i < 32; ++i) {
        const int nibble = low[i + 32 * (quarter % 2)] >> (quarter < 2 ? 0 : 4) & 15;
        const int q = (nibble | (high[i] >> 2 * quarter & 3) << 4) - 32;
        const int element = 128 * half + 32 * quarter + i;
        const auto scale = static_cast<std::int8_t>(scales[element / 16]);
        out[element] = d * static_cast<float>(scale) * static_cast<float>(q);
      }
    }
  }
}

}  // namespace

void dequantize(DType dtype, std::span<const std::byte> stored, std::span<float> out) {
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(stored.data());
  const auto each_block = [&](auto expand) {
    const auto elements = static_cast<std::size_t>(dtype_block_elements(dtype));
    for (std::size_t i = 0; i < out.size() / elements; ++i)
      expand(bytes + i * dtype_block_bytes(dtype), out.data() + i * elements);
  };
  switch (dtype) {
    case DType::kF32:
      std::memcpy(out.data(), bytes, out.size_bytes());
      return;
    case DType::kF16:
      return each_block([](const std::uint8_t* b, float* o) { *o = load_f16(b); });
    case DType::kBF16:
      return each_block([](const std::uint8_t* b, float* o) { *o = bf16_to_float(load_u16(b)); });
    case DType::kQ8_0:
      return each_block(expand_q8_0);
    case DType::kQ4_0:
      return each_block(expand_q4_0);
    case DType::kQ4_1:
      return each_block(expand_q4_1);
    case DType::kQ4_K:
      return each_block(expand_q4_k);
    case DType::kQ6_K:
      return each_block(expand_q6_k);
  }
}

}  // namespace thaw::checkpoint
