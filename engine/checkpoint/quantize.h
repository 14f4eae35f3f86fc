#pragma once

#include <cstddef>
#include <span>

namespace thaw::checkpoint {

/// Rounds `values` to Q8_0 blocks, 34 bytes for 32 of them: scale = largest magnitude / 127 (stored
/// as f16), q = value * (1 / scale before it was rounded), halves away from zero; the bits that
/// ggml's reference quantiser gives. False, with `stored` unspecified, where a value is not finite
/// or the scale overflows f16 (magnitudes above some 8 million).
/// REQUIRES: values.size() a multiple of 32, stored.size() to match.
/// Source: quantize_row_q8_0_ref of ggml, and the `gguf` package, which makes the test's fixture.
bool quantize_q8_0(std::span<const float> values, std::span<std::byte> stored);

}  // namespace thaw::checkpoint
