#pragma once

#include "engine/ops/cuda/ptx.cuh"

// RMSNorm, step by step, so that every kernel that computes one rounds at the same points
// (docs/exactness.md): a row is the work of 256 threads, of which thread i holds columns 4 i .. 4 i
// + 3, then 1024 further on.

namespace thaw::ops::cuda {

inline constexpr int kNormThreads = 256;  ///< of a row

/// The sum of a value over a warp: xor 16, 8, 4, 2, 1.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2)
    value = __fadd_rn(value, __shfl_xor_sync(0xffffffff, value, offset));
  return value;
}

__device__ __forceinline__ void add_squares(float& sum, const float4& v) {
  sum = __fmaf_rn(v.x, v.x, sum);
  sum = __fmaf_rn(v.y, v.y, sum);
  sum = __fmaf_rn(v.z, v.z, sum);
  sum = __fmaf_rn(v.w, v.w, sum);
}

/// What a row of `width` columns is multiplied by; `parts`: the sums of its warps.
__device__ __forceinline__ float norm_scale(const float (&parts)[kNormThreads / 32], float width,
                                            float eps) {
  float total = parts[0];
#pragma unroll
  for (int i = 1; i < kNormThreads / 32; ++i)
    total = __fadd_rn(total, parts[i]);
  const float mean = __fdiv_rn(total, width);
  return __fdiv_rn(1.0F, __fsqrt_rn(__fadd_rn(mean, eps)));
}

/// Four columns, rounded once.
__device__ __forceinline__ uint2 normed(const float4& v, float scale, const float4& weight) {
  return {ptx::pack_bf16(__fmul_rn(__fmul_rn(v.x, scale), weight.x),
                         __fmul_rn(__fmul_rn(v.y, scale), weight.y)),
          ptx::pack_bf16(__fmul_rn(__fmul_rn(v.z, scale), weight.z),
                         __fmul_rn(__fmul_rn(v.w, scale), weight.w))};
}

}  // namespace thaw::ops::cuda
