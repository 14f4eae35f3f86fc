#include "engine/sampling/reduce.h"

#include <algorithm>
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

// One source for all instruction sets: the compiler makes vectors of it, and plain multiplications,
// additions and divisions give the same bits in any of them.
[[gnu::always_inline]] inline void weigh(std::span<const float> logits, float largest,
                                         float temperature, float min_p, double* weights) {
  const float* values = logits.data();
  const std::size_t size = logits.size();
  for (std::size_t i = 0; i < size; ++i)
    weights[i] = draw_weight(values[i], largest, temperature, min_p);
}

void weigh_plain(std::span<const float> logits, float largest, float temperature, float min_p,
                 double* weights) {
  weigh(logits, largest, temperature, min_p, weights);
}

#ifdef __x86_64__
[[gnu::target("avx2")]] void weigh_avx2(std::span<const float> logits, float largest,
                                        float temperature, float min_p, double* weights) {
  weigh(logits, largest, temperature, min_p, weights);
}

[[gnu::target("avx512f,avx512dq")]] void weigh_avx512(std::span<const float> logits, float largest,
                                                      float temperature, float min_p,
                                                      double* weights) {
  weigh(logits, largest, temperature, min_p, weights);
}
#endif

// Missing tokens of a last block weigh +0, which changes no sum.
double block_sum(std::span<const double> weights) {
  std::array<double, kDrawLanes> sums{};
  std::size_t i = 0;
  for (; i + kDrawLanes <= weights.size(); i += kDrawLanes) {
    for (std::size_t lane = 0; lane < kDrawLanes; ++lane)
      sums[lane] += weights[i + lane];
  }
  for (std::size_t lane = 0; i + lane < weights.size(); ++lane)
    sums[lane] += weights[i + lane];
  for (std::size_t half = kDrawLanes / 2; half > 0; half /= 2) {
    for (std::size_t lane = 0; lane < half; ++lane)
      sums[lane] += sums[lane + half];
  }
  return sums[0];
}

std::span<const double> group_at(std::span<const double> block, int begin) {
  const auto rest = block.subspan(static_cast<std::size_t>(begin));
  return rest.first(std::min<std::size_t>(kDrawGroupTokens, rest.size()));
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

void compute_weights(std::span<const float> logits, float largest, float temperature, float min_p,
                     double* weights) {
  static ComputeWeights* const best = compute_weights_variants().back();
  best(logits, largest, temperature, min_p, weights);
}

std::vector<ComputeWeights*> compute_weights_variants() {
  std::vector<ComputeWeights*> variants{weigh_plain};
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx2") != 0) variants.push_back(weigh_avx2);
  if (__builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512dq") != 0)
    variants.push_back(weigh_avx512);
#endif
  return variants;
}

double sum_blocks(std::span<const double> weights, std::vector<double>& sums) {
  sums.clear();
  double total = 0.0;
  for (std::size_t begin = 0; begin < weights.size(); begin += kDrawBlockTokens) {
    const auto block = weights.subspan(begin).first(
        std::min<std::size_t>(kDrawBlockTokens, weights.size() - begin));
    sums.push_back(block_sum(block));
    total += sums.back();
  }
  return total;
}

std::size_t pick(std::span<const double> weights, std::span<const double> sums, double target) {
  DrawWalk blocks{target};
  for (int i = 0; i < static_cast<int>(sums.size()); ++i)
    if (blocks.passes(i, sums[static_cast<std::size_t>(i)])) break;
  const auto block_begin = static_cast<std::size_t>(blocks.index) * kDrawBlockTokens;
  const auto block = weights.subspan(
      block_begin, std::min<std::size_t>(kDrawBlockTokens, weights.size() - block_begin));

  DrawWalk groups{target, blocks.before};
  for (int begin = 0; begin < static_cast<int>(block.size()); begin += kDrawGroupTokens)
    if (groups.passes(begin, ordered_sum(group_at(block, begin)))) break;

  DrawWalk tokens{target, groups.before};
  const auto group = group_at(block, groups.index);
  for (int i = 0; i < static_cast<int>(group.size()); ++i)
    if (tokens.passes(i, group[static_cast<std::size_t>(i)])) break;
  return block_begin + static_cast<std::size_t>(groups.index + tokens.index);
}

double ordered_sum(std::span<const double> values) {
  double sum = 0.0;
  for (double value : values)
    sum += value;
  return sum;
}

}  // namespace thaw::sampling
