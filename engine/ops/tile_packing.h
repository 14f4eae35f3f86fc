#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "engine/base/result.h"
#include "engine/base/thread_pool.h"
#include "engine/checkpoint/dtype.h"
#include "engine/ops/weight_tiles.h"

namespace thaw::ops {

/// A stored row-major matrix [rows, cols] and its place in a tiled weight.
struct TilePart {
  checkpoint::DType dtype = checkpoint::DType::kF32;
  std::span<const std::byte> stored;
  std::int64_t rows = 0;
  cuda::WeightRows placement = cuda::WeightRows::kPlain;
  std::int64_t first_row = 0;  ///< in the tiled weight; a multiple of 16 for kGate and kUp
};

/// Packs rows [first_row, first_row + count) of the tiled weight that `parts` make together, as
/// kTiledBF16, into `out` (weight_elements(count, cols) bf16). bf16 values stay what they are, all
/// others are expanded to float32 and rounded once, ties to even; rows that no part has are zeros.
/// Errors: kInvalidArgument for sizes that do not fit, cols no multiple of 64 or of a stored block;
/// kDataLoss where a rounded value is not finite. REQUIRES: first_row a multiple of 16.
Result<void> pack_tiles(std::span<const TilePart> parts, std::int64_t cols, std::int64_t first_row,
                        std::int64_t count, std::span<std::byte> out, ThreadPool& threads);

}  // namespace thaw::ops
