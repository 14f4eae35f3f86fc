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
  std::vector<double> weights(logits.size());
  compute_weights(logits, largest, 0.7F, weights.data());
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const double x = (logits[i] - static_cast<double>(largest)) / static_cast<double>(0.7F);
    ASSERT_EQ(weights[i], exp_of_negative(x));
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
