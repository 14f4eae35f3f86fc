#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <numbers>
#include <span>

#include "engine/base/result.h"

namespace thaw::sampling {

/// e^x for x <= 0 with an error of a few ulp, 0 below -700. Plain multiplications and additions in
/// one order, so that every processor and every vector width gives the same bits (the C library's
/// exp does not promise that). exp(x) = 2^n * p(r): n = round(x / ln 2), r = x - n ln 2, p the
/// Taylor polynomial of degree 13, whose remainder is below 1e-17 for |r| <= ln 2 / 2.
inline double exp_of_negative(double x) {
  constexpr double kMagic = 0x1.8p52 + 1023.0;  // rounds; the low bits then hold n + 1023
  const double shifted = x * std::numbers::log2e + kMagic;
  const double n = shifted - kMagic;
  constexpr double kLn2High = 0x1.62e42feep-1;  // NOLINT(modernize-use-std-numbers): a part of it
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
  const double scaled = p * std::bit_cast<double>(std::bit_cast<std::uint64_t>(shifted) << 52);
  return x < -700.0 ? 0.0 : scaled;
}

/// The largest logit. Errors: a NaN or +infinity, with its token; nothing but -infinity.
Result<float> checked_max(std::span<const float> logits);

/// First index of `value`. REQUIRES: it occurs.
std::size_t index_of(std::span<const float> logits, float value);

/// weights[i] = exp((logits[i] - largest) / temperature).
void compute_weights(std::span<const float> logits, float largest, float temperature,
                     double* weights);

/// In the order of the elements.
double ordered_sum(std::span<const double> values);

}  // namespace thaw::sampling
