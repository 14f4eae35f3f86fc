// What is drawn follows the distribution that the parameters describe: chi-square over fixed seeds.
// The bounds are those of p = 0.001, so a right sampler passes these seeds and a wrong one does
// not.

#include <cmath>
#include <map>

#include <gtest/gtest.h>

#include "engine/sampling/sampler.h"

namespace thaw::sampling {
namespace {

constexpr int kNumDraws = 20000;

// Degrees of freedom -> the value that chi-square exceeds with probability 0.001.
const std::map<std::size_t, double> kBound{{1, 10.83}, {2, 13.82}, {4, 18.47}, {7, 24.32}};

void expect_distribution(const std::vector<float>& logits, SamplingParams params,
                         const std::vector<double>& expected) {
  Sampler sampler;
  std::vector<TokenId> tokens{1};
  std::vector<int> counts(logits.size(), 0);
  for (int i = 0; i < kNumDraws; ++i) {
    // Positions of one sequence, then seeds: both must be uniform.
    params.seed = 1000 + static_cast<std::uint64_t>(i) / 100;
    tokens.resize(1 + static_cast<std::size_t>(i) % 100, 1);
    const auto sampled = sampler.sample(logits, params, {tokens, 1, 0, {}});
    ASSERT_TRUE(sampled);
    ++counts[static_cast<std::size_t>(sampled->token)];
  }
  double chi_square = 0.0;
  std::size_t possible = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (expected[i] == 0.0) {
      EXPECT_EQ(counts[i], 0) << "token " << i;
      continue;
    }
    ++possible;
    const double mean = expected[i] * kNumDraws;
    chi_square += (counts[i] - mean) * (counts[i] - mean) / mean;
  }
  EXPECT_LT(chi_square, kBound.at(possible - 1));
}

std::vector<float> logs(const std::vector<double>& probabilities) {
  std::vector<float> logits;
  for (double p : probabilities)
    logits.push_back(static_cast<float>(std::log(p) + 3.0));
  return logits;
}

const std::vector<double> kProbabilities{0.05, 0.3, 0.1, 0.02, 0.25, 0.08, 0.12, 0.08};

TEST(Distribution, IsSoftmax) {
  SamplingParams params;
  expect_distribution(logs(kProbabilities), params, kProbabilities);
}

TEST(Distribution, TemperatureIsAPower) {
  SamplingParams params;
  params.temperature = 0.5F;
  std::vector<double> expected;
  double total = 0.0;
  for (double p : kProbabilities)
    total += p * p;
  for (double p : kProbabilities)
    expected.push_back(p * p / total);
  expect_distribution(logs(kProbabilities), params, expected);
}

TEST(Distribution, TopKTopPAndMinPRenormalise) {
  const double total = 0.3 + 0.25 + 0.12;
  const std::vector<double> best_three{0, 0.3 / total, 0, 0, 0.25 / total, 0, 0.12 / total, 0};
  SamplingParams top_k;
  top_k.top_k = 3;
  expect_distribution(logs(kProbabilities), top_k, best_three);
  SamplingParams top_p;
  top_p.top_p = 0.6F;
  expect_distribution(logs(kProbabilities), top_p, best_three);
  SamplingParams min_p;
  min_p.min_p = 0.39F;
  expect_distribution(logs(kProbabilities), min_p, best_three);
}

}  // namespace
}  // namespace thaw::sampling
