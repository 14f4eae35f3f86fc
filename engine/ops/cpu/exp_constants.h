#pragma once

// Constants of the one exponential (engine/ops/exp.h). exp(x) = 2^n * p(r), n = round(x * log2 e),
// r = x - n * ln 2 in two parts, p of degree 6 with the first two coefficients 1; the others
// minimise the largest relative error for |r| <= ln 2 / 2 (3.8e-9 before rounding).

namespace thaw::ops {

inline constexpr float kExpLargest = 88.0F;  ///< larger x give exp(88)
inline constexpr float kExpSmallest = -87.0F;  ///< smaller x give +0
// Written out, not taken from <numbers>: the bits are part of the arithmetic.
// NOLINTBEGIN(modernize-use-std-numbers)
inline constexpr float kExpLog2E = 0x1.715476p+0F;
inline constexpr float kExpLn2High = 0x1.62e4p-1F;
// NOLINTEND(modernize-use-std-numbers)
inline constexpr float kExpLn2Low = 0x1.7f7d1cp-20F;
/// Adding it rounds to an integer; its low bits hold the exponent bias, so that the sum's bits
/// shifted left by 23 are 2^n.
inline constexpr float kExpMagic = 0x1.8p23F + 127.0F;
inline constexpr float kExpC2 = 0x1.fffffcp-2F;
inline constexpr float kExpC3 = 0x1.555492p-3F;
inline constexpr float kExpC4 = 0x1.5558f2p-5F;
inline constexpr float kExpC5 = 0x1.1239e2p-7F;
inline constexpr float kExpC6 = 0x1.6a2434p-10F;

}  // namespace thaw::ops
