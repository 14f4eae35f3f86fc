#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "engine/checkpoint/dtype.h"

namespace thaw::checkpoint {

/// What the nibbles of IQ4_NL mean, in units of the block's scale.
inline constexpr std::array<std::int8_t, 16> kIq4Values{-127, -104, -83, -65, -49, -35, -22, -10,
                                                        1,    13,   25,  38,  53,  69,  89,  113};

struct ScaleMin {
  int scale;
  int minimum;
};

/// Six-bit scale and minimum number `j` (0..7) from the 12 bytes of a Q4_K or Q5_K block.
ScaleMin scale_min_k4(const std::uint8_t* packed, int j);
/// Six-bit scale number `j` (0..15) from the 12 bytes of a Q3_K block, -32..31.
int scale_q3_k(const std::uint8_t* packed, int j);

/// Expands `out.size()` elements of a stored row to float: the defining values of each quantised
/// format, element = scale * q (+ min), in float32. REQUIRES: out.size() a multiple of
/// dtype_block_elements(dtype) and `stored` that many blocks long.
/// Source of the block layouts: the GGUF specification and ggml's type definitions.
void dequantize(DType dtype, std::span<const std::byte> stored, std::span<float> out);

}  // namespace thaw::checkpoint
