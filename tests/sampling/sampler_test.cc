#include "engine/sampling/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <set>

#include <gtest/gtest.h>

namespace thaw::sampling {
namespace {

constexpr float kBarred = -std::numeric_limits<float>::infinity();

std::vector<float> random_logits(std::size_t size, std::uint32_t seed, float spread = 3.0F) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0F, spread);
  std::vector<float> logits(size);
  for (float& logit : logits)
    logit = normal(random);
  return logits;
}

TokenId argmax(const std::vector<float>& logits) {
  return static_cast<TokenId>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

class SamplerTest : public ::testing::Test {
 protected:
  TokenId sample(const std::vector<float>& logits) {
    const auto sampled = sampler_.sample(logits, params_, context());
    EXPECT_TRUE(sampled) << sampled.error().message;
    return sampled ? sampled->token : -1;
  }
  /// Every token that some seed draws.
  std::set<TokenId> drawn(const std::vector<float>& logits, int num_seeds = 400) {
    std::set<TokenId> tokens;
    for (int seed = 0; seed < num_seeds; ++seed) {
      params_.seed = static_cast<std::uint64_t>(seed);
      tokens.insert(sample(logits));
    }
    return tokens;
  }
  SamplingContext context() const { return {tokens_, generation_start_, choice_, eos_}; }

  Sampler sampler_;
  SamplingParams params_;
  std::vector<TokenId> tokens_{1, 2, 3};
  std::uint32_t generation_start_ = 3;
  std::uint32_t choice_ = 0;
  std::vector<TokenId> eos_{0};
};

TEST_F(SamplerTest, TemperatureZeroAndTopKOneAreArgmax) {
  for (std::uint32_t seed = 0; seed < 50; ++seed) {
    const auto logits = random_logits(777, seed);
    params_ = {};
    params_.temperature = 0.0F;
    EXPECT_EQ(sample(logits), argmax(logits));
    params_.temperature = 1.3F;
    params_.top_k = 1;
    params_.seed = seed;
    EXPECT_EQ(sample(logits), argmax(logits));
  }
}

TEST_F(SamplerTest, TiesGoToTheLowerId) {
  std::vector<float> logits(100, 1.0F);
  params_.temperature = 0.0F;
  EXPECT_EQ(sample(logits), 0);
  logits[60] = logits[40] = 2.0F;
  EXPECT_EQ(sample(logits), 40);
  params_.temperature = 1.0F;
  params_.top_k = 3;
  EXPECT_EQ(drawn(logits), (std::set<TokenId>{0, 40, 60}));
}

TEST_F(SamplerTest, SeedChoiceAndPositionDecideTheDraw) {
  const auto logits = random_logits(1000, 1, 1.0F);
  std::set<TokenId> by_seed, by_choice, by_position;
  for (std::uint32_t i = 0; i < 30; ++i) {
    params_.seed = i;
    const TokenId first = sample(logits);
    Sampler fresh;
    EXPECT_EQ(fresh.sample(logits, params_, context())->token, first);
    by_seed.insert(first);
    params_.seed = 7;
    choice_ = i;
    by_choice.insert(sample(logits));
    choice_ = 0;
    tokens_.push_back(1);
    by_position.insert(sample(logits));
  }
  EXPECT_GT(by_seed.size(), 20U);
  EXPECT_GT(by_choice.size(), 20U);
  EXPECT_GT(by_position.size(), 20U);
}

// Where these change, draw-1 becomes draw-2 (base/draw.h).
TEST_F(SamplerTest, DrawsAreThoseOfTheNamedRule) {
  std::vector<float> logits(5000);
  for (std::size_t i = 0; i < logits.size(); ++i)
    logits[i] = static_cast<float>((i * 2654435761U) % 10007U) * 0x1p-11F;
  std::vector<TokenId> tokens;
  for (std::uint32_t seed = 0; seed < 12; ++seed) {
    params_ = {};
    params_.seed = seed;
    params_.temperature = 0.5F + 0.25F * static_cast<float>(seed % 4);
    params_.min_p = seed % 2 == 0 ? 0.0F : 0.02F;
    params_.top_p = seed < 8 ? 1.0F : 0.9F;
    tokens.push_back(sample(logits));
  }
  EXPECT_EQ(tokens, (std::vector<TokenId>{3938, 3784, 912, 692, 356, 3352, 3077, 1948, 1715, 1123,
                                          2979, 424}));
}

TEST_F(SamplerTest, TopKKeepsTheBest) {
  std::vector<float> logits(64, 0.0F);
  logits[5] = 0.3F;
  logits[9] = 0.2F;
  logits[7] = 0.1F;
  params_.top_k = 3;
  EXPECT_EQ(drawn(logits), (std::set<TokenId>{5, 7, 9}));
}

TEST_F(SamplerTest, TopPKeepsTheSmallestSetThatReachesIt) {
  const std::vector<float> logits{std::log(0.5F), std::log(0.3F), std::log(0.15F), std::log(0.05F)};
  params_.top_p = 0.4F;
  EXPECT_EQ(drawn(logits), (std::set<TokenId>{0}));
  params_.top_p = 0.6F;
  EXPECT_EQ(drawn(logits), (std::set<TokenId>{0, 1}));
  params_.top_p = 0.9F;
  EXPECT_EQ(drawn(logits), (std::set<TokenId>{0, 1, 2}));
  params_.top_p = 0.99F;
  EXPECT_EQ(drawn(logits), (std::set<TokenId>{0, 1, 2, 3}));
  // top_p counts what top_k leaves: 0.5 of 0.8 is 0.625.
  params_.top_k = 2;
  params_.top_p = 0.6F;
  EXPECT_EQ(drawn(logits), (std::set<TokenId>{0}));
}

TEST_F(SamplerTest, MinPIsAShareOfTheBest) {
  const std::vector<float> logits{std::log(0.5F), std::log(0.3F), std::log(0.15F), std::log(0.05F)};
  params_.min_p = 0.5F;
  EXPECT_EQ(drawn(logits), (std::set<TokenId>{0, 1}));
  params_.top_k = 3;
  EXPECT_EQ(drawn(logits), (std::set<TokenId>{0, 1}));
  params_.top_k = 0;
  params_.top_p = 0.6F;  // 0.5 of the 0.8 left is 0.625
  EXPECT_EQ(drawn(logits), (std::set<TokenId>{0}));
}

TEST_F(SamplerTest, NucleusOfManyTokensEqualsAPlainComputation) {
  for (std::uint32_t seed = 0; seed < 20; ++seed) {
    const auto logits = random_logits(3000, seed, 2.0F);
    params_ = {};
    params_.top_p = 0.3F + 0.03F * static_cast<float>(seed);
    std::vector<TokenId> order(logits.size());
    std::iota(order.begin(), order.end(), 0);
    std::ranges::sort(order, [&](TokenId a, TokenId b) {
      return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
    });
    double total = 0.0;
    for (float logit : logits)
      total += std::exp(static_cast<double>(logit));
    std::set<TokenId> nucleus;
    double sum = 0.0;
    for (TokenId id : order) {
      nucleus.insert(id);
      sum += std::exp(static_cast<double>(logits[id]));
      if (sum >= params_.top_p * total) break;
    }
    for (TokenId token : drawn(logits, 200))
      ASSERT_TRUE(nucleus.contains(token)) << "seed " << seed;
  }
}

TEST_F(SamplerTest, BiasOfMinus100Excludes) {
  std::vector<float> logits(50, 0.0F);
  logits[3] = 500.0F;
  params_.logit_bias = {{3, -100.0F}};
  EXPECT_FALSE(drawn(logits).contains(3));
  params_.temperature = 0.0F;
  EXPECT_EQ(sample(logits), 0);
  params_.logit_bias = {{3, -100.0F}, {20, 1.0F}};
  EXPECT_EQ(sample(logits), 20);
  params_.logit_bias.clear();
  for (TokenId token = 0; token < 50; ++token)
    params_.logit_bias.emplace_back(token, -100.0F);
  const auto sampled = sampler_.sample(logits, params_, context());
  ASSERT_FALSE(sampled);
  EXPECT_EQ(sampled.error().code, Errc::kInvalidArgument);
}

TEST_F(SamplerTest, PresenceAndFrequencyCountGeneratedTokensOnly) {
  tokens_ = {4, 4, 5, 6, 6, 6, 7};
  generation_start_ = 3;  // generated: 6 6 6 7
  params_.temperature = 0.0F;
  std::vector<float> logits(10, 0.0F);
  logits[4] = 1.0F;  // in the prompt only
  params_.presence_penalty = 2.0F;
  EXPECT_EQ(sample(logits), 4);
  logits = std::vector<float>(10, -10.0F);
  logits[6] = 2.0F;
  logits[8] = -0.5F;
  params_.presence_penalty = 2.0F;  // 6: 2 - 2 = 0
  EXPECT_EQ(sample(logits), 6);
  params_.presence_penalty = 0.0F;
  params_.frequency_penalty = 0.8F;  // 6: 2 - 3 * 0.8 = -0.4
  EXPECT_EQ(sample(logits), 6);
  params_.frequency_penalty = 0.9F;  // -0.7
  EXPECT_EQ(sample(logits), 8);
  params_.frequency_penalty = -2.0F;  // 7: -10 + 2, 6: 8
  EXPECT_EQ(sample(logits), 6);
}

TEST_F(SamplerTest, RepetitionCountsThePromptToo) {
  tokens_ = {4, 4, 5};
  generation_start_ = 3;
  params_.temperature = 0.0F;
  params_.repetition_penalty = 2.0F;
  std::vector<float> logits(10, -9.0F);
  logits[4] = 3.0F;  // 1.5 once divided; twice would be 0.75
  logits[6] = 1.4F;
  EXPECT_EQ(sample(logits), 4);
  logits[6] = 1.6F;
  EXPECT_EQ(sample(logits), 6);
  logits[4] = -1.0F;  // negative ones are multiplied: -2
  logits[6] = -1.9F;
  EXPECT_EQ(sample(logits), 6);
}

TEST_F(SamplerTest, MinTokensHoldsStopsBack) {
  std::vector<float> logits(10, 0.0F);
  logits[0] = 3.0F;
  logits[5] = 2.0F;
  logits[6] = 1.0F;
  params_.temperature = 0.0F;
  params_.stop_token_ids = {5};
  EXPECT_EQ(sample(logits), 0);
  params_.min_tokens = 1;
  EXPECT_EQ(sample(logits), 6);
  params_.ignore_eos = true;  // then EOS is a token like others
  EXPECT_EQ(sample(logits), 0);
  params_.ignore_eos = false;
  tokens_.push_back(9);
  EXPECT_EQ(sample(logits), 0);
}

TEST_F(SamplerTest, LeavesNoTraceOfPenalties) {
  const auto logits = random_logits(200, 3);
  params_.seed = 5;
  const TokenId before = sample(logits);
  params_.repetition_penalty = 1.7F;
  params_.frequency_penalty = 1.0F;
  tokens_ = {1, 2, 3, 4, 5, 5, 5};
  sample(logits);
  params_.repetition_penalty = 1.0F;
  params_.frequency_penalty = 0.0F;
  tokens_ = {1, 2, 3};
  EXPECT_EQ(sample(logits), before);
  const auto counted = sampler_.sample(logits, params_, context());
  EXPECT_EQ(counted->token, before);
}

TEST_F(SamplerTest, LogprobsAreOfTheRawDistribution) {
  const std::vector<float> logits{std::log(0.1F), std::log(0.6F), std::log(0.3F), kBarred};
  params_.temperature = 0.0F;
  params_.logit_bias = {{0, 50.0F}};
  params_.top_logprobs = 2;
  const auto sampled = sampler_.sample(logits, params_, context());
  ASSERT_TRUE(sampled);
  EXPECT_EQ(sampled->token, 0);
  EXPECT_NEAR(sampled->logprob, std::log(0.1F), 1e-6);
  ASSERT_EQ(sampled->top_logprobs.size(), 2U);
  EXPECT_EQ(sampled->top_logprobs[0].token, 1);
  EXPECT_NEAR(sampled->top_logprobs[0].logprob, std::log(0.6F), 1e-6);
  EXPECT_EQ(sampled->top_logprobs[1].token, 2);
  params_.top_logprobs = 0;
  EXPECT_TRUE(sampler_.sample(logits, params_, context())->top_logprobs.empty());
}

TEST_F(SamplerTest, NanIsAnError) {
  std::vector<float> logits(40, 0.0F);
  logits[39] = std::numeric_limits<float>::quiet_NaN();
  const auto sampled = sampler_.sample(logits, params_, context());
  ASSERT_FALSE(sampled);
  EXPECT_NE(sampled.error().message.find("token 39 is NaN"), std::string::npos);
}

TEST_F(SamplerTest, MaskComesFirst) {
  auto logits = random_logits(100, 9);
  logits[51] = 100.0F;
  params_.logit_bias = {{51, 100.0F}};
  const std::vector<std::uint32_t> even(4, 0x55555555U);
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    params_.seed = seed;
    auto masked = context();
    masked.mask = even;
    const auto sampled = sampler_.sample(logits, params_, masked);
    ASSERT_TRUE(sampled);
    EXPECT_EQ(sampled->token % 2, 0);
  }
}

TEST_F(SamplerTest, OnlyAllowedTokensAreSampled) {
  const auto logits = random_logits(500, 3);
  params_.allowed_token_ids = {7, 400, 7, 33};
  EXPECT_EQ(drawn(logits), (std::set<TokenId>{7, 33, 400}));
  params_.temperature = 0.0F;
  const TokenId best = sample(logits);
  EXPECT_EQ(logits[best], std::max({logits[7], logits[33], logits[400]}));
  // Nothing stays behind for those who may sample everything.
  params_ = {};
  params_.temperature = 0.0F;
  EXPECT_EQ(sample(logits), argmax(logits));
}

TEST_F(SamplerTest, BadWordsAreNeverGeneratedInWhole) {
  const auto logits = random_logits(500, 4);
  const TokenId best = argmax(logits);
  params_.temperature = 0.0F;
  params_.bad_words = {{best}};
  EXPECT_NE(sample(logits), best);
  // Of several tokens only the last one is excluded, and only behind the others.
  params_.bad_words = {{20, 21, best}};
  EXPECT_EQ(sample(logits), best);
  tokens_ = {1, 2, 3, 20, 21};
  EXPECT_NE(sample(logits), best);
  // What the prompt ends with begins no word.
  generation_start_ = 4;
  EXPECT_EQ(sample(logits), best);
}

TEST_F(SamplerTest, ScoreHasTheBitsOfTheSampledLogprob) {
  params_.top_logprobs = 4;
  for (std::uint32_t seed = 0; seed < 50; ++seed) {
    auto logits = random_logits(777, seed);
    logits[5] = logits[argmax(logits)];  // a tie
    params_.seed = seed;
    const auto sampled = sampler_.sample(logits, params_, context());
    ASSERT_TRUE(sampled);
    const auto scored = sampler_.score(logits, sampled->token, 4);
    ASSERT_TRUE(scored);
    EXPECT_EQ(scored->logprob, sampled->logprob);
    ASSERT_EQ(scored->best.size(), sampled->top_logprobs.size());
    for (std::size_t i = 0; i < scored->best.size(); ++i) {
      EXPECT_EQ(scored->best[i].token, sampled->top_logprobs[i].token);
      EXPECT_EQ(scored->best[i].logprob, sampled->top_logprobs[i].logprob);
      if (scored->best[i].token == sampled->token) {
        EXPECT_EQ(scored->rank, i + 1);
      }
    }
    std::uint32_t before = 0;
    for (std::size_t i = 0; i < logits.size(); ++i) {
      const bool ties_before =
          logits[i] == logits[sampled->token] && static_cast<TokenId>(i) < sampled->token;
      before += logits[i] > logits[sampled->token] || ties_before ? 1 : 0;
    }
    EXPECT_EQ(scored->rank, before + 1);
  }
}

TEST_F(SamplerTest, AMaskIsWhatMinusInfinityWouldBe) {
  std::mt19937 random(5);
  for (std::uint32_t seed = 0; seed < 100; ++seed) {
    const auto logits = random_logits(333, seed);
    std::vector<std::uint32_t> mask(11);
    for (auto& word : mask)
      word = static_cast<std::uint32_t>(random());
    mask[0] |= 1U;
    auto barred = logits;
    for (std::size_t i = 0; i < barred.size(); ++i)
      if ((mask[i / 32] >> (i % 32) & 1U) == 0) barred[i] = kBarred;
    params_ = {};
    params_.seed = seed;
    params_.temperature = seed % 4 == 0 ? 0.0F : 0.8F;
    params_.top_p = seed % 3 == 0 ? 0.7F : 1.0F;
    params_.top_k = seed % 5 == 0 ? 20 : 0;
    auto masked = context();
    masked.mask = mask;
    const auto sampled = sampler_.sample(logits, params_, masked);
    ASSERT_TRUE(sampled);
    EXPECT_EQ(sampled->token, sample(barred));
  }
}

TEST_F(SamplerTest, AMaskDecidesWhereStopTokensMayCome) {
  const std::vector<float> logits(40, 0.0F);
  const std::vector<std::uint32_t> only_eos{1U, 0U};
  params_.min_tokens = 10;
  auto masked = context();
  masked.mask = only_eos;
  const auto sampled = sampler_.sample(logits, params_, masked);
  ASSERT_TRUE(sampled) << sampled.error().message;
  EXPECT_EQ(sampled->token, 0);
}

TEST_F(SamplerTest, AMaskOfNothingIsAnError) {
  const std::vector<float> logits(40, 0.0F);
  const std::vector<std::uint32_t> nothing(2, 0U);
  auto masked = context();
  masked.mask = nothing;
  EXPECT_FALSE(sampler_.sample(logits, params_, masked));
}

}  // namespace
}  // namespace thaw::sampling
