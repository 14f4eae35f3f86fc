#include "engine/sampling/reduce.h"

#include <array>
#include <cmath>
#include <limits>
#include <string>

namespace thaw::sampling {
namespace {

// Loops over a fixed number of lanes become vector code at any optimisation level that vectorises.
constexpr std::size_t kLanes = 32;

Error bad_row(std::span<const float> logits) {
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (!(logits[i] < std::numeric_limits<float>::infinity())) {
      return make_error(Errc::kInternal, "the logit of token " + std::to_string(i) + " is " +
                                             (std::isnan(logits[i]) ? "NaN" : "infinite") +
                                             "; every logit must be a number");
    }
  }
  return make_error(Errc::kInvalidArgument,
                    "no token is left to sample: logit_bias, min_tokens or a mask exclude all " +
                        std::to_string(logits.size()));
}

}  // namespace

Result<float> checked_max(std::span<const float> logits) {
  std::array<float, kLanes> best;
  std::array<std::uint32_t, kLanes> is_nan{};
  best.fill(-std::numeric_limits<float>::infinity());
  std::size_t i = 0;
  for (; i + kLanes <= logits.size(); i += kLanes) {
    const float* values = logits.data() + i;
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
      best[lane] = values[lane] > best[lane] ? values[lane] : best[lane];
      is_nan[lane] |= values[lane] != values[lane] ? 1U : 0U;
    }
  }
  float largest = -std::numeric_limits<float>::infinity();
  bool any_nan = false;
  for (; i < logits.size(); ++i) {
    largest = logits[i] > largest ? logits[i] : largest;
    any_nan |= std::isnan(logits[i]);
  }
  for (std::size_t lane = 0; lane < kLanes; ++lane) {
    largest = best[lane] > largest ? best[lane] : largest;
    any_nan |= is_nan[lane] != 0;
  }
  if (any_nan || std::isinf(largest)) return bad_row(logits);
  return largest;
}

std::size_t index_of(std::span<const float> logits, float value) {
  std::size_t i = 0;
  for (; i + kLanes <= logits.size(); i += kLanes) {
    std::uint32_t found = 0;
    for (std::size_t lane = 0; lane < kLanes; ++lane)
      found |= logits[i + lane] == value ? 1U : 0U;
    if (found != 0) break;
  }
  while (logits[i] != value)
    ++i;
  return i;
}

void compute_weights(std::span<const float> logits, float largest, float temperature,
                     double* weights) {
  const double top = largest;
  const double divisor = temperature;
  std::size_t i = 0;
  for (; i + kLanes <= logits.size(); i += kLanes) {
    for (std::size_t lane = 0; lane < kLanes; ++lane)
      weights[i + lane] = exp_of_negative((logits[i + lane] - top) / divisor);
  }
  for (; i < logits.size(); ++i)
    weights[i] = exp_of_negative((logits[i] - top) / divisor);
}

double ordered_sum(std::span<const double> values) {
  double sum = 0.0;
  for (double value : values)
    sum += value;
  return sum;
}

}  // namespace thaw::sampling
