#pragma once

#include <cstddef>
#include <span>

#include "engine/checkpoint/dtype.h"

namespace thaw::checkpoint {

/// Expands `out.size()` elements of a stored row to float: the defining values of each quantised
/// format, element = scale * q (+ min), in float32. REQUIRES: out.size() a multiple of
/// dtype_block_elements(dtype) and `stored` that many blocks long.
/// Source of the block layouts: the GGUF specification and ggml's type definitions.
void dequantize(DType dtype, std::span<const std::byte> stored, std::span<float> out);

}  // namespace thaw::checkpoint
