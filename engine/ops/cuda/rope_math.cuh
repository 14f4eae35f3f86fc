#pragma once

#include <cstdint>

// What becomes of heads between projection and attention, spelled once, so that every kernel that
// turns and stores them rounds at the same points and refuses the same values (docs/exactness.md).

namespace thaw::ops::cuda {

/// The two values of a word of bf16, widened.
__device__ __forceinline__ float low_bf16(std::uint32_t pair) {
  return __uint_as_float(pair << 16);
}
__device__ __forceinline__ float high_bf16(std::uint32_t pair) {
  return __uint_as_float(pair & 0xffff0000U);
}

/// Whether all `before` were finite and neither of these two is an infinity or NaN.
__device__ __forceinline__ bool still_finite(bool before, std::uint32_t pair) {
  return before && (pair & 0x7f80) != 0x7f80 && (pair & 0x7f800000) != 0x7f800000;
}

/// Turns a pair of a head's dims by its position's angle. Source: Su et al., arXiv:2104.09864.
__device__ __forceinline__ void rotate_pair(float& first, float& second, float cos, float sin) {
  const float a = first;
  const float b = second;
  first = __fmaf_rn(a, cos, -__fmul_rn(b, sin));
  second = __fmaf_rn(a, sin, __fmul_rn(b, cos));
}

}  // namespace thaw::ops::cuda
