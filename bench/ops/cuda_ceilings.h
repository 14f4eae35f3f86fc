#pragma once

#include <cuda_bf16.h>

#include <cstddef>
#include <functional>

#include "engine/cuda/stream.h"

namespace thaw::bench {

/// What this GPU can do, measured in the same run as what is compared with it.
struct CudaCeilings {
  double read_bytes_per_second = 0;  ///< a kernel that only reads, over 8 GiB
  double flops = 0;  ///< cuBLAS, bf16, 8192 x 8192 x 8192, free to choose
};

CudaCeilings measure_cuda_ceilings(thaw::cuda::StreamView stream);

/// Random values near a normal distribution of deviation `scale`, by a kernel.
void fill_normal(__nv_bfloat16* out, std::size_t count, float scale, unsigned seed,
                 thaw::cuda::StreamView stream);

/// out[num_rows][rows] = x[num_rows][cols] * weight[rows][cols]^T by cuBLAS as it likes best,
/// split-K included; bf16 in, bf16 or float32 out.
void cublas_linear(const void* weight, const void* x, void* out, int rows, int cols, int num_rows,
                   bool float_out, thaw::cuda::StreamView stream);

/// Median milliseconds of `repeats` runs of `work`, each between two events, after one to warm up.
double median_milliseconds(int repeats, const std::function<void()>& work,
                           thaw::cuda::StreamView stream);

}  // namespace thaw::bench
