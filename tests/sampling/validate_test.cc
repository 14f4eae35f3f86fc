#include <limits>

#include <gtest/gtest.h>

#include "engine/sampling/sampler.h"

namespace thaw::sampling {
namespace {

constexpr int kVocab = 100;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Case {
  const char* field;
  void (*spoil)(SamplingParams&);
  const char* value;
};

const Case kCases[] = {
    {"temperature", [](SamplingParams& p) { p.temperature = -1.0F; }, "-1"},
    {"temperature", [](SamplingParams& p) { p.temperature = kNan; }, "nan"},
    {"top_k", [](SamplingParams& p) { p.top_k = -2; }, "-2"},
    {"top_p", [](SamplingParams& p) { p.top_p = 0.0F; }, "0"},
    {"top_p", [](SamplingParams& p) { p.top_p = 1.5F; }, "1.5"},
    {"top_p", [](SamplingParams& p) { p.top_p = kNan; }, "nan"},
    {"min_p", [](SamplingParams& p) { p.min_p = -0.5F; }, "-0.5"},
    {"repetition_penalty", [](SamplingParams& p) { p.repetition_penalty = 0.0F; }, "0"},
    {"presence_penalty", [](SamplingParams& p) { p.presence_penalty = 3.0F; }, "3"},
    {"frequency_penalty", [](SamplingParams& p) { p.frequency_penalty = -3.0F; }, "-3"},
    {"logit_bias",
     [](SamplingParams& p) {
       p.logit_bias = {{100, 1.0F}};
     },
     "100"},
    {"logit_bias",
     [](SamplingParams& p) {
       p.logit_bias = {{5, 101.0F}};
     },
     "101"},
    {"stop_token_ids",
     [](SamplingParams& p) {
       p.stop_token_ids = {3, -7};
     },
     "-7"},
    {"allowed_token_ids",
     [](SamplingParams& p) {
       p.allowed_token_ids = {1, kVocab};
     },
     "100"},
    {"bad_words",
     [](SamplingParams& p) {
       p.bad_words = {{1}, {}};
     },
     "empty"},
    {"bad_words",
     [](SamplingParams& p) {
       p.bad_words = {{1, -2}};
     },
     "-2"},
    {"min_tokens", [](SamplingParams& p) { p.min_tokens = 17; }, "17"},
    {"top_logprobs", [](SamplingParams& p) { p.top_logprobs = 21; }, "21"},
};

TEST(Validate, NamesFieldAndValue) {
  for (const Case& bad : kCases) {
    SamplingParams params;
    bad.spoil(params);
    const auto result = validate(params, kVocab);
    ASSERT_FALSE(result) << bad.field;
    EXPECT_EQ(result.error().code, Errc::kInvalidArgument);
    EXPECT_NE(result.error().message.find(bad.field), std::string::npos) << result.error().message;
    EXPECT_NE(result.error().message.find(bad.value), std::string::npos) << result.error().message;
  }
}

TEST(Validate, TakesTheEdges) {
  SamplingParams params;
  EXPECT_TRUE(validate(params, kVocab));
  params.temperature = 0.0F;
  params.top_k = 1000;
  params.min_p = 1.0F;
  params.top_p = 1e-6F;
  params.presence_penalty = -2.0F;
  params.frequency_penalty = 2.0F;
  params.logit_bias = {{0, -100.0F}, {99, 100.0F}};
  params.stop_token_ids = {0, 99};
  params.min_tokens = params.max_tokens;
  params.top_logprobs = 20;
  EXPECT_TRUE(validate(params, kVocab));
}

}  // namespace
}  // namespace thaw::sampling
