#pragma once

#include <cstddef>

// The layout of a weight matrix that the CUDA kernels read, without anything of CUDA: images in it
// are made on machines that have no toolkit. engine/ops/cuda/tiles.h says what it is good for.

#ifdef __CUDACC__
#define THAW_HOST_DEVICE __host__ __device__
#else
#define THAW_HOST_DEVICE
#endif

namespace thaw::ops::cuda {

inline constexpr int kChunk = 64;  ///< columns (K) of one chunk: 4 steps of k16
inline constexpr int kWeightGroup = 16;  ///< rows of one group of a weight: one mma.sync M tile

THAW_HOST_DEVICE constexpr int ceil_div(int a, int b) {
  return (a + b - 1) / b;
}

/// Index of element (row, col) of a weight of `cols` inputs:
/// [row / 16][col / 64][row % 16 / 8][col % 64 / 8][row % 8][col % 8].
THAW_HOST_DEVICE constexpr std::size_t weight_index(int row, int col, int cols) {
  const std::size_t chunk =
      static_cast<std::size_t>(row / kWeightGroup) * (cols / kChunk) + col / kChunk;
  return chunk * (kWeightGroup * kChunk) + (row % 16 / 8) * 512 + (col % 64 / 8) * 64 +
         (row % 8) * 8 + col % 8;
}

/// Elements of a weight in this layout; rows are padded to 16.
constexpr std::size_t weight_elements(int rows, int cols) {
  return static_cast<std::size_t>(ceil_div(rows, kWeightGroup)) * kWeightGroup * cols;
}

/// Where a stored matrix's rows go in a tiled weight.
enum class WeightRows {
  kPlain,  ///< row n -> first_row + n
  kGate,  ///< interleaved with kUp in groups of 8: gate 0-7, up 0-7, gate 8-15, ...
  kUp,
};

}  // namespace thaw::ops::cuda
