#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "engine/ops/cpu/exp_constants.h"

namespace thaw::ops {

/// e^x with an error under 2 ulp for -87 <= x <= 88; +0 below (-infinity included), e^88 above, NaN
/// for NaN. The same bits as the vector kernels, everywhere.
inline float exp_f32(float x) {
  const float bounded = kExpLargest < x ? kExpLargest : x;
  const float shifted = std::fma(bounded, kExpLog2E, kExpMagic);
  const float n = shifted - kExpMagic;
  float r = std::fma(n, -kExpLn2High, bounded);
  r = std::fma(n, -kExpLn2Low, r);
  float p = kExpC6;
  p = std::fma(p, r, kExpC5);
  p = std::fma(p, r, kExpC4);
  p = std::fma(p, r, kExpC3);
  p = std::fma(p, r, kExpC2);
  p = std::fma(p, r, 1.0F);
  p = std::fma(p, r, 1.0F);
  if (x < kExpSmallest) return 0.0F;
  return p * std::bit_cast<float>(std::bit_cast<std::uint32_t>(shifted) << 23);
}

}  // namespace thaw::ops
