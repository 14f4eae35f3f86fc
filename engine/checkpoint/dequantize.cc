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

/// Element `i` of 32 five-bit quants: nibbles as in Q4_0, high bits as a little-endian u32.
int fivebit(const std::uint8_t* high, const std::uint8_t* nibbles, int i) {
  const int low = nibbles[i % 16] >> (i < 16 ? 0 : 4) & 15;
  return low | (high[i / 8] >> i % 8 & 1) << 4;
}

/// Element `i` of the 64 bytes of Q2_K and Q3_K.
int twobit(const std::uint8_t* quants, int i) {
  return quants[32 * (i / 128) + i % 32] >> 2 * (i % 128 / 32) & 3;
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

/// 32 elements: f16 scale, 32 high bits (bit i of a u32 is element i's), 16 bytes as in Q4_0; q
/// - 16.
void expand_q5_0(const std::uint8_t* block, float* out) {
  const float scale = load_f16(block);
  for (int i = 0; i < 32; ++i)
    out[i] = scale * static_cast<float>(fivebit(block + 2, block + 6, i) - 16);
}

/// The same with a minimum behind the scale; q is unsigned.
void expand_q5_1(const std::uint8_t* block, float* out) {
  const float scale = load_f16(block);
  const float minimum = load_f16(block + 2);
  for (int i = 0; i < 32; ++i)
    out[i] = scale * static_cast<float>(fivebit(block + 4, block + 8, i)) + minimum;
}

/// Q4_K with 32 bytes of high bits before the nibbles: bit s of byte i belongs to element i of
/// sub-block s.
void expand_q5_k(const std::uint8_t* block, float* out) {
  const float d = load_f16(block);
  const float dmin = load_f16(block + 2);
  const std::uint8_t* high = block + 16;
  for (int sub = 0; sub < 8; ++sub) {
    const ScaleMin packed = scale_min_k4(block + 4, sub);
    const float scale = d * static_cast<float>(packed.scale);
    const float minimum = dmin * static_cast<float>(packed.minimum);
    const std::uint8_t* quants = block + 48 + 32 * (sub / 2);
    const int shift = sub % 2 == 0 ? 0 : 4;
    for (int i = 0; i < 32; ++i) {
      const int q = (quants[i] >> shift & 15) | (high[i] >> sub & 1) << 4;
      out[32 * sub + i] = scale * static_cast<float>(q) - minimum;
    }
  }
}

/// 256 elements in sixteen sub-blocks of 16: 16 bytes of scale (low nibble) and minimum (high),
/// 64 bytes of quants, f16 d, f16 dmin. In each half of 128, byte i holds elements i, i + 32,
/// i + 64 and i + 96, the first in its lowest bits.
void expand_q2_k(const std::uint8_t* block, float* out) {
  const float d = load_f16(block + 80);
  const float dmin = load_f16(block + 82);
  for (int element = 0; element < 256; ++element) {
    const std::uint8_t packed = block[element / 16];
    const float scale = d * static_cast<float>(packed & 15);
    const float minimum = dmin * static_cast<float>(packed >> 4);
    out[element] = scale * static_cast<float>(twobit(block + 16, element)) - minimum;
  }
}

/// 256 elements in sixteen sub-blocks of 16: 32 bytes of high bits (bit s of byte i: element
/// 32 s + i), 64 bytes of low bits as in Q2_K, 12 bytes of scales, f16 d; q - 4.
void expand_q3_k(const std::uint8_t* block, float* out) {
  const float d = load_f16(block + 108);
  for (int element = 0; element < 256; ++element) {
    const float scale = d * static_cast<float>(scale_q3_k(block + 96, element / 16));
    const int high = block[element % 32] >> (element / 32) & 1;
    out[element] = scale * static_cast<float>((twobit(block + 32, element) | high << 2) - 4);
  }
}

/// 32 elements: f16 scale, 16 bytes as in Q4_0; q picks one of sixteen values.
void expand_iq4_nl(const std::uint8_t* block, float* out) {
  const float scale = load_f16(block);
  for (int i = 0; i < 16; ++i) {
    out[i] = scale * static_cast<float>(kIq4Values[block[2 + i] & 15]);
    out[i + 16] = scale * static_cast<float>(kIq4Values[block[2 + i] >> 4]);
  }
}

}  // namespace

// Bytes 0-3 hold the scales of
// 0-3, bytes 4-7 their minima; the top two bits of these eight bytes and the nibbles of bytes 8-11
// hold those of 4-7.
ScaleMin scale_min_k4(const std::uint8_t* packed, int j) {
  if (j < 4) return {packed[j] & 63, packed[j + 4] & 63};
  return {(packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4, (packed[j + 4] >> 4) | (packed[j] >> 6)
                                                                                       << 4};
}

// Bytes 0-7 hold the low nibbles of
// 0-7 and 8-15, bytes 8-11 the two high bits of j, j + 4, j + 8 and j + 12.
int scale_q3_k(const std::uint8_t* packed, int j) {
  const int low = packed[j % 8] >> (j < 8 ? 0 : 4) & 15;
  const int high = packed[8 + j % 4] >> 2 * (j / 4) & 3;
  return (low | high << 4) - 32;
}

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
    case DType::kQ5_0:
      return each_block(expand_q5_0);
    case DType::kQ5_1:
      return each_block(expand_q5_1);
    case DType::kQ5_K:
      return each_block(expand_q5_k);
    case DType::kQ2_K:
      return each_block(expand_q2_k);
    case DType::kQ3_K:
      return each_block(expand_q3_k);
    case DType::kIQ4_NL:
      return each_block(expand_iq4_nl);
  }
}

}  // namespace thaw::checkpoint
