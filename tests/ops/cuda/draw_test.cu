// The device draws what the host's sampler draws, token for token.

#include <cmath>
#include <limits>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/base/error.h"
#include "engine/base/random.h"
#include "engine/ops/cuda/draw.h"
#include "engine/sampling/sampler.h"
#include "tests/ops/cuda/cuda_ops_util.cuh"

namespace thaw::ops::cuda {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// A row and how it is drawn; `position` tokens come before it.
struct Case {
  std::vector<float> logits;
  float temperature = 1.0F;
  float min_p = 0.0F;
  std::uint64_t seed = 1;
  std::uint32_t choice = 0;
  std::uint64_t position = 0;
  std::vector<std::uint32_t> mask = {};  ///< empty: none
};

class CudaDrawTest : public CudaOpsTest {
 protected:
  std::vector<std::int32_t> device_draws(const std::vector<Case>& cases) {
    const int vocabulary = static_cast<int>(cases[0].logits.size());
    const int stride = vocabulary + 3;
    std::vector<float> logits;
    std::vector<DrawRow> rows;
    for (const Case& one : cases) {
      logits.insert(logits.end(), one.logits.begin(), one.logits.end());
      logits.resize(logits.size() + 3, NAN);  // behind the row: nobody's
      rows.push_back(
          {token_uniform(one.seed, one.choice, one.position), one.temperature, one.min_p});
    }
    const auto device_logits = to_device(logits, *stream);
    const auto device_rows = to_device(rows, *stream);
    const int count = static_cast<int>(cases.size());
    const auto workspace = poisoned<double>(draw_workspace_bytes(count, vocabulary) / 8, *stream);
    const auto out = poisoned<std::int32_t>(cases.size(), *stream);
    std::vector<std::int32_t> mask_of_row;
    std::vector<std::uint32_t> masks;
    const auto words = static_cast<std::size_t>(draw_mask_words(vocabulary));
    for (const Case& one : cases) {
      mask_of_row.push_back(one.mask.empty() ? -1
                                             : static_cast<std::int32_t>(masks.size() / words));
      masks.insert(masks.end(), one.mask.begin(), one.mask.end());
    }
    const bool has_masks = !masks.empty();
    const auto device_mask_of_row = to_device(mask_of_row, *stream);
    masks.resize(masks.size() + 1);
    const auto device_masks = to_device(masks, *stream);
    const DrawParams params{device_logits.data(),
                            stride,
                            count,
                            vocabulary,
                            device_rows.data(),
                            workspace.data(),
                            out.data(),
                            has_masks ? device_mask_of_row.data() : nullptr,
                            has_masks ? device_masks.data() : nullptr};
    draw(*device, params, *stream);
    const auto once = to_host(out, *stream);
    draw(*device, params, *stream);  // the workspace holds nothing from before
    EXPECT_EQ(to_host(out, *stream), once);
    return once;
  }

  static std::int32_t host_draw(const Case& one) {
    SamplingParams params;
    params.temperature = one.temperature;
    params.min_p = one.min_p;
    params.seed = one.seed;
    const std::vector<TokenId> tokens(one.position);
    sampling::SamplingContext context;
    context.tokens = tokens;
    context.generation_start = static_cast<std::uint32_t>(one.position);
    context.choice_index = one.choice;
    context.mask = one.mask;
    sampling::Sampler sampler;
    const auto sampled = sampler.sample(one.logits, params, context);
    return sampled ? sampled->token : -1;
  }

  void expect_alike(const std::vector<Case>& cases) {
    const auto drawn = device_draws(cases);
    for (std::size_t i = 0; i < cases.size(); ++i)
      ASSERT_EQ(drawn[i], host_draw(cases[i]))
          << "row " << i << " of " << cases[0].logits.size() << " logits, temperature "
          << cases[i].temperature << ", min_p " << cases[i].min_p;
  }

  static std::vector<float> random_logits(int vocabulary, float scale, unsigned seed) {
    std::mt19937 engine(seed);
    std::normal_distribution<float> normal(0.0F, scale);
    std::vector<float> logits(static_cast<std::size_t>(vocabulary));
    for (float& logit : logits)
      logit = normal(engine);
    return logits;
  }
};

TEST_F(CudaDrawTest, RandomLogitsOfEverySize) {
  for (const int vocabulary : {1, 2, 31, 32, 33, 1000, 1023, 1024, 1025, 5000, 49152, 128256}) {
    std::vector<Case> cases;
    unsigned seed = 0;
    for (const float temperature : {0.0F, 0.2F, 1.0F, 1.7F}) {
      for (const float min_p : {0.0F, 0.05F, 1.0F}) {
        for (int i = 0; i < (vocabulary > 10000 ? 2 : 6); ++i, ++seed)
          cases.push_back({random_logits(vocabulary, i % 2 == 0 ? 1.0F : 6.0F, seed), temperature,
                           min_p, seed * 77, seed % 5, seed});
      }
    }
    expect_alike(cases);
  }
}

TEST_F(CudaDrawTest, MaskedRowsAmongFreeOnes) {
  for (const int vocabulary : {1, 31, 33, 1024, 1025, 5000, 49152, 128256}) {
    std::vector<Case> cases;
    for (unsigned seed = 0; seed < 24; ++seed) {
      std::mt19937 random(seed);
      Case one{random_logits(vocabulary, 3.0F, seed),
               seed % 4 == 0 ? 0.0F : 1.1F,
               seed % 5 == 0 ? 0.1F : 0.0F,
               seed,
               seed % 3,
               seed};
      if (seed % 3 != 0) {
        // From dense to a handful of tokens, and one with none at all.
        one.mask.resize(static_cast<std::size_t>(draw_mask_words(vocabulary)));
        for (std::uint32_t& word : one.mask) {
          word = static_cast<std::uint32_t>(random());
          for (unsigned thinner = 0; thinner < seed % 8; ++thinner)
            word &= static_cast<std::uint32_t>(random());
        }
        if (seed == 23) std::fill(one.mask.begin(), one.mask.end(), 0U);
      }
      cases.push_back(std::move(one));
    }
    expect_alike(cases);
  }
}

TEST_F(CudaDrawTest, WhatIsWrongBehindAMaskIsWrong) {
  std::vector<Case> cases;
  for (const float bad : {NAN, kInfinity, -kInfinity}) {
    Case one{random_logits(2500, 3.0F, 1)};
    one.logits[1999] = bad;
    one.mask.assign(79, ~0U);
    one.mask[1999 / 32] = 0;
    cases.push_back(std::move(one));
  }
  const auto drawn = device_draws(cases);
  EXPECT_EQ(drawn[0], -1);
  EXPECT_EQ(drawn[1], -1);
  EXPECT_GE(drawn[2], 0);
  expect_alike(cases);
}

TEST_F(CudaDrawTest, ExtremeTemperatures) {
  std::vector<Case> cases;
  for (const float temperature : {1e-30F, 1e-6F, 100.0F, 1e30F})
    for (unsigned seed = 0; seed < 6; ++seed)
      cases.push_back({random_logits(3001, 3.0F, seed), temperature, 0.0F, seed});
  expect_alike(cases);
}

TEST_F(CudaDrawTest, TiesAndExcludedTokens) {
  std::vector<Case> cases;
  for (unsigned seed = 0; seed < 40; ++seed) {
    const float temperature = seed % 4 == 0 ? 0.0F : 0.8F;
    std::vector<float> flat(2500, 1.25F);
    cases.push_back({flat, temperature, seed % 3 == 0 ? 1.0F : 0.0F, seed});
    // A few candidates in an empty row, at the edges of groups and blocks.
    std::vector<float> sparse(2500, -kInfinity);
    for (const int at : {31, 32, 1023, 1024, 2047, 2499})
      sparse[static_cast<std::size_t>(at)] = static_cast<float>(at % 3);
    cases.push_back({sparse, temperature, 0.0F, seed});
    std::vector<float> one(2500, -kInfinity);
    one[seed * 61] = -1e30F;
    cases.push_back({one, temperature, 0.0F, seed});
    std::vector<float> zeros(2500, -5.0F);
    zeros[700] = -0.0F;
    zeros[1900] = 0.0F;
    cases.push_back({zeros, temperature, 0.0F, seed});
  }
  expect_alike(cases);
}

TEST_F(CudaDrawTest, TheLastTokensAreReached) {
  // A uniform just below one, which no seed gives on demand.
  const int vocabulary = 2500;
  const auto two = to_device(std::vector<float>(2 * vocabulary, 0.0F), *stream);
  const auto rows = to_device(
      std::vector<DrawRow>{{std::nextafter(1.0, 0.0), 1.0F, 0.0F}, {0.0, 1.0F, 0.0F}}, *stream);
  const auto workspace = poisoned<double>(draw_workspace_bytes(2, vocabulary) / 8, *stream);
  const auto out = poisoned<std::int32_t>(2, *stream);
  draw(*device, {two.data(), vocabulary, 2, vocabulary, rows.data(), workspace.data(), out.data()},
       *stream);
  EXPECT_THAT(to_host(out, *stream), testing::ElementsAre(vocabulary - 1, 0));
}

TEST_F(CudaDrawTest, BadRowsSayMinusOneAndHarmNoOther) {
  const int vocabulary = 3000;
  for (const float temperature : {0.0F, 0.7F}) {
    std::vector<Case> cases(5, {random_logits(vocabulary, 2.0F, 3), temperature, 0.0F, 9});
    cases[0].logits.front() = NAN;
    cases[1].logits.back() = NAN;
    cases[2].logits[1500] = kInfinity;
    cases[3].logits.assign(vocabulary, -kInfinity);
    const auto drawn = device_draws(cases);
    EXPECT_THAT(drawn, testing::ElementsAre(-1, -1, -1, -1, host_draw(cases[4])));
    EXPECT_GE(drawn[4], 0);
    for (int i = 0; i < 4; ++i)
      EXPECT_EQ(host_draw(cases[static_cast<std::size_t>(i)]), -1);
  }
}

TEST_F(CudaDrawTest, RefusesWhatCannotBe) {
  DrawParams params;
  params.num_rows = 1;
  params.vocabulary = 100;
  params.stride = 99;
  try {
    draw(*device, params, *stream);
    ADD_FAILURE() << "accepted a stride below the vocabulary";
  } catch (const Exception& failure) {
    EXPECT_THAT(failure.error().message, testing::HasSubstr("stride is 99"));
  }
}

}  // namespace
}  // namespace thaw::ops::cuda
