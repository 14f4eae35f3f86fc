#pragma once

#include "engine/ops/cuda/linear.h"
#include "engine/ops/cuda/ptx.cuh"

// What both kernels make of a product. Each adds the bias first, in float32, and rounds last.

namespace thaw::ops::cuda {

/// What the kernels know of the output.
struct LinearOut {
  void* data;
  std::int64_t stride;
  const float* bias;
  int rows;  ///< outputs a row of x has: weight.rows
  int num_rows;  ///< rows of x
  std::int64_t copies[kMostCopies] = {};  ///< LinearParams::copies
  int num_copies = 0;
};

/// silu(gate) * up; the exponential and the reciprocal are the special function unit's.
__device__ __forceinline__ float swiglu(float gate, float up) {
  const float e = ptx::exp2_approx(__fmul_rn(gate, -1.4426950408889634F));
  return __fmul_rn(__fmul_rn(gate, ptx::rcp_approx(__fadd_rn(1.0F, e))), up);
}

}  // namespace thaw::ops::cuda
