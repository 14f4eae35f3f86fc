#include "engine/sampling/reduce.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include <gtest/gtest.h>

namespace thaw::sampling {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

TEST(ExpOfNegative, AgreesWithTheLibrary) {
  EXPECT_EQ(exp_of_negative(0.0), 1.0);
  EXPECT_EQ(exp_of_negative(-701.0), 0.0);
  EXPECT_EQ(exp_of_negative(-std::numeric_limits<double>::infinity()), 0.0);
  std::mt19937_64 random(1);
  std::uniform_real_distribution<double> uniform(-700.0, 0.0);
  for (int i = 0; i < 100000; ++i) {
    const double x = i % 2 == 0 ? uniform(random) : uniform(random) / 100.0;
    ASSERT_NEAR(exp_of_negative(x) / std::exp(x), 1.0, 1e-14) << x;
  }
}

TEST(ComputeWeights, AreTheScalarBitsInAnyLane) {
  std::mt19937 random(2);
  std::normal_distribution<float> normal(0.0F, 5.0F);
  std::vector<float> logits(1000);
  for (float& logit : logits)
    logit = normal(random);
  const float largest = *std::max_element(logits.begin(), logits.end());
  logits[5] = -kInf;
  logits[600] = -3e38F;
  for (ComputeWeights* variant : compute_weights_variants()) {
    std::vector<double> weights(logits.size());
    variant(logits, largest, 0.7F, 0.0F, weights.data());
    for (std::size_t i = 0; i < logits.size(); ++i) {
      const double x = (logits[i] - static_cast<double>(largest)) / static_cast<double>(0.7F);
      ASSERT_EQ(weights[i], exp_of_negative(x)) << i;
    }
  }
}

TEST(ComputeWeights, LeaveOutWhatIsUnderMinP) {
  std::vector<float> logits(100, -1.0F);
  logits[40] = 0.0F;
  logits[77] = -0.5F;
  std::vector<double> weights(logits.size());
  compute_weights(logits, 0.0F, 1.0F, 0.5F, weights.data());
  for (std::size_t i = 0; i < logits.size(); ++i)
    EXPECT_EQ(weights[i] > 0.0, i == 40 || i == 77) << i;
}

/// Weights whose sums round at almost every addition.
std::vector<double> rough_weights(std::size_t size, std::uint32_t seed) {
  std::mt19937_64 random(seed);
  std::exponential_distribution<double> exponential;
  std::vector<double> weights(size);
  for (double& weight : weights)
    weight = random() % 3 == 0 ? 0.0 : std::exp(-8.0 * exponential(random));
  return weights;
}

// The rule of docs/exactness.md, token by token and lane by lane.
double sum_of_block(const std::vector<double>& weights, std::size_t block) {
  double lanes[32] = {};
  for (std::size_t i = block * 1024; i < std::min(weights.size(), (block + 1) * 1024); ++i)
    lanes[i % 32] += weights[i];
  for (int half : {16, 8, 4, 2, 1})
    for (int lane = 0; lane < half; ++lane)
      lanes[lane] += lanes[lane + half];
  return lanes[0];
}

TEST(SumBlocks, FollowTheRule) {
  for (std::size_t size : {1U, 31U, 1000U, 1024U, 1025U, 1056U, 5000U}) {
    const auto weights = rough_weights(size, 3);
    std::vector<double> sums;
    const double total = sum_blocks(weights, sums);
    ASSERT_EQ(sums.size(), (size + 1023) / 1024);
    double expected = 0.0;
    for (std::size_t block = 0; block < sums.size(); ++block) {
      ASSERT_EQ(sums[block], sum_of_block(weights, block)) << size << " " << block;
      expected += sums[block];
    }
    ASSERT_EQ(total, expected);
  }
  // And the rule is not the plain order.
  const auto weights = rough_weights(1024, 3);
  std::vector<double> sums;
  EXPECT_NE(sum_blocks(weights, sums), ordered_sum(weights));
}

std::size_t pick_of(const std::vector<double>& weights, double target) {
  std::vector<double> sums;
  sum_blocks(weights, sums);
  return pick(weights, sums, target);
}

TEST(Pick, FindsTheTokenInWhichTheTargetFalls) {
  // Sums of small integers are exact, so the order cannot matter here and the plain walk is right.
  std::mt19937 random(4);
  std::vector<double> weights(3333);
  for (double& weight : weights)
    weight = static_cast<double>(random() % 3);
  double before = 0.0;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    if (weights[i] == 0.0) continue;
    ASSERT_EQ(pick_of(weights, before), i);
    ASSERT_EQ(pick_of(weights, before + weights[i] - 0.5), i);
    before += weights[i];
  }
}

TEST(Pick, ATargetAtTheVeryEndFallsInTheLastTokenThatWeighsSomething) {
  std::vector<double> weights(2500, 0.0);
  weights[0] = weights[1100] = 1.0;
  EXPECT_EQ(pick_of(weights, 2.0), 1100U);
  EXPECT_EQ(pick_of(weights, 1.0), 1100U);
  weights[2499] = 1.0;
  EXPECT_EQ(pick_of(weights, 3.0), 2499U);
}

TEST(Pick, FollowsTheRuleWhereSumsRound) {
  for (std::uint32_t seed = 0; seed < 200; ++seed) {
    const auto weights = rough_weights(1 + seed * 37, seed);
    std::vector<double> sums;
    const double total = sum_blocks(weights, sums);
    if (total == 0.0) continue;
    // Seen at the far end of a running sum, where a wrong place to begin would show.
    const double target = total * (1.0 - 0x1p-52 * (seed % 5));
    const std::size_t picked = pick(weights, sums, target);
    ASSERT_GT(weights[picked], 0.0);
    double sum = 0.0;
    std::size_t block = 0;
    std::size_t last_block = 0;
    double last_before = 0.0;
    for (; block < sums.size(); ++block) {
      if (sums[block] == 0.0) continue;
      last_block = block;
      last_before = sum;
      sum += sums[block];
      if (sum > target) break;
    }
    ASSERT_EQ(picked / 1024, last_block) << seed;
    ASSERT_LE(last_before, target);
  }
}

TEST(CheckedMax, FindsTheLargestAtAnyPlaceAndSize) {
  for (std::size_t size : {1U, 31U, 32U, 33U, 100U}) {
    for (std::size_t place = 0; place < size; ++place) {
      std::vector<float> logits(size, -2.0F);
      logits[place] = -1.0F;
      const auto largest = checked_max(logits);
      ASSERT_TRUE(largest);
      ASSERT_EQ(*largest, -1.0F);
      ASSERT_EQ(index_of(logits, *largest), place);
    }
  }
}

TEST(CheckedMax, RefusesNanAndInfinityWithTheirToken) {
  for (float bad : {std::numeric_limits<float>::quiet_NaN(), kInf}) {
    for (std::size_t place : {0U, 40U, 69U}) {
      std::vector<float> logits(70, 1.0F);
      logits[place] = bad;
      const auto result = checked_max(logits);
      ASSERT_FALSE(result);
      EXPECT_EQ(result.error().code, Errc::kInternal);
      EXPECT_NE(result.error().message.find("token " + std::to_string(place)), std::string::npos);
    }
  }
  EXPECT_FALSE(checked_max(std::vector<float>(70, -kInf)));
}

}  // namespace
}  // namespace thaw::sampling
