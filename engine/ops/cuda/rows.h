#pragma once

#include <cstdint>

#include "engine/cuda/stream.h"
#include "engine/ops/cuda/device.h"
#include "engine/ops/cuda/tiles.h"

namespace thaw::ops::cuda {

// The glue between steps and between rows: ids that only the device knows, and rows that go on
// alone.

/// What an id of a step may be besides a token.
inline constexpr std::int32_t kNoToken = -1;  ///< a row that nobody reads
/// The token that the last step (`before` 0) or the one before it (1) drew as its number `index`,
/// out of at most `max_drawn`.
THAW_HOST_DEVICE constexpr std::int32_t drawn_reference(int before, int index, int max_drawn) {
  return -2 - (before * max_drawn + index);
}

struct ResolveIdsParams {
  const std::int32_t* ids = nullptr;  ///< [num_rows]: tokens, kNoToken or drawn_reference()
  int num_rows = 0;
  std::int32_t* drawn = nullptr;  ///< [2][max_drawn]: what the last two steps drew
  int max_drawn = 0;
  std::int32_t* out = nullptr;  ///< [num_rows]: tokens; negative where there is none
};

/// Puts what earlier steps drew into the ids of this one, and then makes room for what it will draw
/// itself: drawn[0] becomes drawn[1]. The first operation of every step.
void resolve_ids(const CudaDevice& device, const ResolveIdsParams& params,
                 thaw::cuda::StreamView stream);

struct GatherRowsParams {
  const std::int32_t* rows = nullptr;  ///< [num_rows]: the row that each one comes from
  int num_rows = 0;
  const float* x = nullptr;  ///< [*][cols] float32; cols a multiple of 4
  int cols = 0;
  float* x_out = nullptr;  ///< [num_rows][cols]
  Tiles tiles;
  Tiles tiles_out;  ///< [num_rows, tiles.cols]
};

/// Copies rows of two matrices to the front of two others, bit for bit.
void gather_rows(const CudaDevice& device, const GatherRowsParams& params,
                 thaw::cuda::StreamView stream);

}  // namespace thaw::ops::cuda
