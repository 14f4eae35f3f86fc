#pragma once

// Between the files of engine/ops/cuda; not for others.

#include "engine/cuda/stream.h"
#include "engine/ops/cuda/device.h"
#include "engine/ops/cuda/linear.h"

namespace thaw::ops::cuda {

/// Make the kernels ready, once a process and device.
void prepare_stream_kernels();
void prepare_tile_kernels();
void prepare_attention_kernels();
void prepare_elementwise_kernels();
void prepare_rope_kernels();
void prepare_draw_kernels();
void prepare_gather_kernels();
void prepare_gather_norm_kernel();

/// Most rows of the streaming kernel.
inline constexpr int kMaxStreamRows = 64;

/// out for rows [first_row, first_row + num_rows), num_rows <= kMaxStreamRows, first_row a multiple
/// of 64.
void linear_stream(const CudaDevice& device, const LinearParams& params, int first_row,
                   int num_rows, thaw::cuda::StreamView stream);

/// out for all rows, by wgmma, in tiles of the size that is fastest for so many.
void linear_tile(const CudaDevice& device, const LinearParams& params,
                 thaw::cuda::StreamView stream);
/// The same in tiles of one size, 0 .. kTileSizes - 1: what compares them asks for each.
inline constexpr int kTileSizes = 4;
void linear_tile_of(int size, const CudaDevice& device, const LinearParams& params,
                    thaw::cuda::StreamView stream);

}  // namespace thaw::ops::cuda
