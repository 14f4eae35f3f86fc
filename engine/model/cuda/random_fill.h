#pragma once

// Between the files of random_image; not for others.

#include <cstdint>

#include "engine/cuda/stream.h"

namespace thaw::model {

/// Fills a tiled bf16 matrix [rows, cols] with normal values, its padding rows with zeros. Enqueues
/// only. Throws where the launch fails.
void fill_tiles(void* out, std::int64_t rows, std::int64_t cols, std::uint32_t seed, float scale,
                cuda::StreamView stream);
/// Fills float32 values: `offset` plus normal values.
void fill_vector(float* out, std::int64_t size, std::uint32_t seed, float scale, float offset,
                 cuda::StreamView stream);

}  // namespace thaw::model
