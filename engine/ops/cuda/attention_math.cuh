#pragma once

#include "engine/ops/cuda/attention_plan.h"
#include "engine/ops/cuda/ptx.cuh"

// The scalar steps of attention, spelled once, so that decode and prefill round at the same points.

namespace thaw::ops::cuda {

inline constexpr float kLog2E = 1.4426950408889634F;

/// What attention_weight takes off: max * factor. The compiler is kept from computing it again for
/// every score, two instructions each.
__device__ __forceinline__ float attention_base(float max, float factor) {
  // A row that sees no key of the split has max -infinity; its weights are to be 0, not NaN.
  float base = max == -INFINITY ? 0.0F : __fmul_rn(max, factor);
  asm volatile("" : "+f"(base));
  return base;
}

/// exp(scale * (score - max)) with factor = scale * log2(e), rounded; masked scores are -infinity.
__device__ __forceinline__ float attention_weight(float score, float base, float factor) {
  return ptx::exp2_approx(__fmaf_rn(score, factor, -base));
}

/// The same, or +0 where nobody asks: then the special function unit, which limits it, has no work.
__device__ __forceinline__ float attention_weight_if(bool asked, float score, float base,
                                                     float factor) {
  return ptx::exp2_approx_if(asked, __fmaf_rn(score, factor, -base));
}

/// What the sums of a split with maximum `own` count for when merged under `max`.
__device__ __forceinline__ float merge_weight(float own, float max, float factor) {
  return ptx::exp2_approx(__fmul_rn(__fsub_rn(own, max), factor));
}

/// older * a + newer * b, the second product fused.
__device__ __forceinline__ float merge(float older, float a, float newer, float b) {
  return __fmaf_rn(newer, b, __fmul_rn(older, a));
}

/// Kernel parameters of both attention kernels.
struct AttentionKernelParams {
  DeviceKv kv;
  int layer;
  int num_heads;
  int group;  // query heads a KV head
  int window;  // keys that a row sees; 0: all
  float factor;  // scale * log2(e)
  const Bf16* q;
  std::int64_t q_stride;
  const std::int32_t* plan;
  std::int32_t* counters;  // the plan again
  float* partial_out;  // [partials][num_heads][head_dim]
  float* partial_stats;  // [partials][num_heads][2]: max, sum
  Bf16* out;
  int out_cols;
};

__device__ __forceinline__ const AttentionPlanHeader& header_of(const AttentionKernelParams& p) {
  return *reinterpret_cast<const AttentionPlanHeader*>(p.plan);
}

}  // namespace thaw::ops::cuda
