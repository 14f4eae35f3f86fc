#pragma once

#include <cuda_bf16.h>

#include <cstddef>
#include <cstdint>

#include "engine/ops/weight_tiles.h"

// The memory layouts that tensor cores read without rearranging, and the views of them.
//
// All are built of *core matrices*: 8 rows x 8 columns of bf16, row by row, 128 contiguous bytes. A
// core matrix is one phase of ldmatrix (mma.sync) and one unit of a wgmma descriptor without
// swizzle; both read it free of bank conflicts, so that one copy of the bytes serves the streaming
// kernel, the tile kernel and plain bulk copies.

namespace thaw::ops::cuda {

using Bf16 = __nv_bfloat16;

inline constexpr int kTokenTile = 64;  ///< rows of one tile of activations: one wgmma M tile

/// Index of element (row, col) of activations of `cols` columns:
/// [row / 64][col / 64][row % 64 / 8][col % 64 / 8][row % 8][col % 8].
THAW_HOST_DEVICE constexpr std::size_t tiles_index(int row, int col, int cols) {
  const std::size_t chunk =
      static_cast<std::size_t>(row / kTokenTile) * (cols / kChunk) + col / kChunk;
  return chunk * (kTokenTile * kChunk) + (row % 64 / 8) * 512 + (col % 64 / 8) * 64 +
         (row % 8) * 8 + col % 8;
}

/// Elements of activations in this layout; rows are padded to 64. What the padding holds is never
/// seen: rows are strangers.
constexpr std::size_t tiles_elements(int rows, int cols) {
  return static_cast<std::size_t>(ceil_div(rows, kTokenTile)) * kTokenTile * cols;
}

/// A weight matrix [rows outputs, cols inputs] in weight layout, device memory.
/// cols is a multiple of 64.
struct TiledWeight {
  const Bf16* data = nullptr;
  int rows = 0;
  int cols = 0;
};

/// Activations [rows, cols] in tile layout, device memory. cols is a multiple of 64.
struct Tiles {
  Bf16* data = nullptr;
  int cols = 0;
};

}  // namespace thaw::ops::cuda
