#pragma once

// Rotary position embeddings, spelled once, so that every kernel that turns a head rounds at the
// same points (docs/exactness.md).

namespace thaw::ops::cuda {

/// Turns a pair of a head's dims by its position's angle. Source: Su et al., arXiv:2104.09864.
__device__ __forceinline__ void rotate_pair(float& first, float& second, float cos, float sin) {
  const float a = first;
  const float b = second;
  first = __fmaf_rn(a, cos, -__fmul_rn(b, sin));
  second = __fmaf_rn(a, sin, __fmul_rn(b, cos));
}

}  // namespace thaw::ops::cuda
