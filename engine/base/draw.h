#pragma once

#include <bit>
#include <cstdint>

#include "engine/base/host_device.h"

// The arithmetic of a draw (docs/exactness.md, Sampling), in one source for the CPU's sampler and
// the GPU's kernel: double precision, plain multiplications, additions and divisions, every sum in
// an order that both can follow. Compile without contraction.

namespace thaw {

/// Names this arithmetic in system_fingerprint: it changes with any draw for any logits. Keys and
/// values do not depend on it.
inline constexpr const char* kDrawRule = "draw-1";

/// Tokens whose weights make one block sum: lane i adds tokens i, i + 32, ... of the block, the
/// lanes are added as a tree (i + 16 to i, then 8, 4, 2, 1), and blocks are added in order.
inline constexpr int kDrawBlockTokens = 1024;
inline constexpr int kDrawLanes = 32;
/// Neighbouring tokens that a draw steps over at once inside its block.
inline constexpr int kDrawGroupTokens = 32;

/// e^x for x <= 0 with an error of a few ulp, 0 below -700. Plain multiplications and additions in
/// one order, so that every processor and every vector width gives the same bits (the C library's
/// exp does not promise that). exp(x) = 2^n * p(r): n = round(x / ln 2), r = x - n ln 2, p the
/// Taylor polynomial of degree 13, whose remainder is below 1e-17 for |r| <= ln 2 / 2.
THAW_HOST_DEVICE inline double exp_of_negative(double x) {
  constexpr double kMagic = 0x1.8p52 + 1023.0;  // rounds; the low bits then hold n + 1023
  constexpr double kLog2E = 0x1.71547652b82fep+0;  // NOLINT(modernize-use-std-numbers): for nvcc
  constexpr double kLn2High = 0x1.62e42feep-1;  // NOLINT(modernize-use-std-numbers): a part of it
  const double shifted = x * kLog2E + kMagic;
  const double n = shifted - kMagic;
  const double r = (x - n * kLn2High) - n * 0x1.a39ef35793c76p-33;
  double p = 1.0 / 6227020800.0;
  p = p * r + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
#ifdef __CUDA_ARCH__
  const double scaled =
      p * __longlong_as_double(static_cast<long long>(
              static_cast<unsigned long long>(__double_as_longlong(shifted)) << 52));
#else
  const double scaled = p * std::bit_cast<double>(std::bit_cast<std::uint64_t>(shifted) << 52);
#endif
  return x < -700.0 ? 0.0 : scaled;
}

/// What a token weighs in the draw; `largest` is the largest logit of its row. Under `min_p`
/// nothing.
THAW_HOST_DEVICE inline double draw_weight(float logit, float largest, float temperature,
                                           float min_p) {
  const double weight =
      exp_of_negative((static_cast<double>(logit) - static_cast<double>(largest)) /
                      static_cast<double>(temperature));
  return weight < static_cast<double>(min_p) ? 0.0 : weight;
}

/// Finds, among weights (or sums of weights) seen in order, the first with which their running sum
/// passes `target`; where rounding lets none do so, the last that weighs anything.
struct DrawWalk {
  double target = 0.0;
  double sum = 0.0;  ///< of what was seen
  double before = 0.0;  ///< the sum before `index`: where a walk inside of it begins
  int index = -1;  ///< -1: nothing weighs anything

  /// True: it is found, and the walk ends.
  THAW_HOST_DEVICE bool passes(int at, double weight) {
    if (!(weight > 0.0)) return false;
    before = sum;
    sum += weight;
    index = at;
    return sum > target;
  }
};

}  // namespace thaw
