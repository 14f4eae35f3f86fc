// Log-probabilities of prompt tokens, and requests that generate nothing.

#include <algorithm>

#include <gtest/gtest.h>

#include "engine/sampling/sampler.h"
#include "tests/scheduler/test_bed.h"

namespace thaw::scheduler {
namespace {

/// What the model expects of the tokens of `prompt` behind the first.
std::vector<PromptLogprob> expected_scores(const std::vector<TokenId>& prompt, int num_best) {
  std::vector<PromptLogprob> scores;
  std::uint64_t context = 0;
  std::vector<float> logits(kFakeVocab);
  sampling::Sampler sampler;
  for (std::size_t position = 0; position + 1 < prompt.size(); ++position) {
    const std::uint64_t own =
        mix(mix(context, static_cast<std::uint64_t>(prompt[position])), position);
    context = mix(context, own);
    fake_logits(own, logits.data());
    scores.push_back(sampler.score(logits, prompt[position + 1], num_best).value());
  }
  return scores;
}

void expect_equal(const std::vector<PromptLogprob>& got, const std::vector<PromptLogprob>& wanted,
                  std::size_t skip = 0) {
  ASSERT_EQ(got.size() + skip, wanted.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    ASSERT_EQ(got[i].logprob, wanted[i + skip].logprob) << "token " << i;
    ASSERT_EQ(got[i].rank, wanted[i + skip].rank) << "token " << i;
    ASSERT_EQ(got[i].best.size(), wanted[i + skip].best.size());
    for (std::size_t j = 0; j < got[i].best.size(); ++j)
      ASSERT_EQ(got[i].best[j].token, wanted[i + skip].best[j].token);
  }
}

GenerateRequest scored(std::vector<TokenId> prompt, std::uint32_t max_tokens = 4) {
  GenerateRequest request = make_request(std::move(prompt), max_tokens);
  request.prompt_logprobs = 2;
  return request;
}

TEST(PromptLogprobs, EveryTokenButTheFirst) {
  for (std::uint32_t chunk : {1U, 7U, 16U, 500U}) {
    TestBed::Options options;
    options.scheduler.prefill_chunk_tokens = chunk;
    TestBed bed(options);
    std::vector<RequestId> ids;
    for (std::size_t length : {1U, 2U, 16U, 17U, 200U})
      ids.push_back(bed.add(scored(some_tokens(length, length))));
    bed.run_and_expect_exact();
    for (const RequestId id : ids)
      expect_equal(bed.outcome(id).prompt, expected_scores(bed.request(id).prompt, 2));
  }
}

TEST(PromptLogprobs, NothingIsTakenFromTheCacheAndOthersTakeWhatIsComputed) {
  TestBed bed;
  const auto prompt = some_tokens(100, 1);
  const RequestId plain = bed.add(make_request(prompt));
  bed.run();
  const RequestId again = bed.add(scored(prompt));
  bed.run();
  EXPECT_EQ(bed.outcome(plain).usage->cached_tokens, 0U);
  EXPECT_EQ(bed.outcome(again).usage->cached_tokens, 0U);
  EXPECT_EQ(bed.stats().tokens_prefilled, 200U);
  const RequestId last = bed.add(make_request(prompt));
  bed.run_and_expect_exact();
  EXPECT_EQ(bed.outcome(last).usage->cached_tokens, 99U);
  // Side by side: the one that is scored waits for nobody, the other one waits for it.
  const auto other = some_tokens(100, 2);
  bed.add(make_request(other));
  const RequestId beside = bed.add(scored(other));
  bed.run_and_expect_exact();
  EXPECT_EQ(bed.outcome(beside).usage->cached_tokens, 0U);
  expect_equal(bed.outcome(beside).prompt, expected_scores(other, 2));
}

TEST(PromptLogprobs, OneRowIsEnoughForAllChoices) {
  TestBed bed;
  GenerateRequest request = scored(some_tokens(50, 1), 6);
  request.num_choices = 4;
  request.sampling.temperature = 1.0F;
  request.sampling.seed = 9;
  const RequestId id = bed.add(request);
  bed.run_and_expect_exact();
  expect_equal(bed.outcome(id).prompt, expected_scores(request.prompt, 2));
  EXPECT_EQ(bed.stats().tokens_prefilled, 50U);
}

TEST(PromptLogprobs, GoesOnAfterPreemptionAndDeath) {
  TestBed::Options options;
  options.num_blocks = 24;
  options.scheduler.prefill_chunk_tokens = 16;
  TestBed bed(options);
  std::vector<RequestId> ids;
  for (std::uint64_t i = 0; i < 6; ++i)
    ids.push_back(bed.add(scored(some_tokens(90, i), 60)));
  bed.run_and_expect_exact();
  EXPECT_GT(bed.stats().preemptions, 0U);
  for (const RequestId id : ids)
    expect_equal(bed.outcome(id).prompt, expected_scores(bed.request(id).prompt, 2));

  TestBed successor;
  GenerateRequest resumed = scored(some_tokens(90, 1));
  resumed.prompt_scored = 37;
  const RequestId id = successor.add(resumed);
  successor.run_and_expect_exact();
  EXPECT_EQ(successor.outcome(id).first_scored, 38U);
  expect_equal(successor.outcome(id).prompt, expected_scores(resumed.prompt, 2), 37);
  EXPECT_EQ(successor.stats().tokens_reprefilled, 37U);
}

TEST(PromptLogprobs, RowsWithLogitsAreBoundedInAStep) {
  // 64 words of 4 bytes: 16 MiB are 65,536 rows, so the bound is seen in the model's rows.
  TestBed::Options options;
  options.scheduler.prefill_chunk_tokens = 100000;
  options.max_positions = 80000;
  options.num_blocks = 6000;
  TestBed bed(options);
  const RequestId id = bed.add(scored(some_tokens(70000, 1), 1));
  bed.run_and_expect_exact();
  EXPECT_EQ(bed.model().largest_prefill(), 65536);
  EXPECT_EQ(bed.outcome(id).prompt.size(), 69999U);
}

TEST(PromptLogprobs, RefusesWhatCannotBe) {
  TestBed bed;
  GenerateRequest request = scored(some_tokens(5, 1));
  request.prompt_logprobs = 21;
  const auto many = bed.try_add(request);
  ASSERT_FALSE(many);
  EXPECT_NE(many.error().message.find("prompt_logprobs is 21"), std::string::npos);
  request.prompt_logprobs = 1;
  request.prompt_scored = 5;
  EXPECT_FALSE(bed.try_add(request));
}

TEST(NothingGenerated, ThePromptIsComputedAndStays) {
  TestBed bed;
  const auto prompt = some_tokens(40, 1);
  GenerateRequest request = make_request(prompt, 0);
  request.num_choices = 3;
  const RequestId id = bed.add(request);
  bed.run();
  EXPECT_EQ(bed.outcome(id).choices.size(), 3U);
  for (const auto& [index, choice] : bed.outcome(id).choices) {
    EXPECT_TRUE(choice.tokens.empty());
    EXPECT_EQ(choice.finished, FinishReason::kLength);
  }
  EXPECT_EQ(bed.outcome(id).usage->generated_tokens, 0U);
  EXPECT_EQ(bed.stats().tokens_prefilled, 40U);
  EXPECT_EQ(bed.stats().tokens_decoded, 0U);
  // All of it, its last token too.
  const RequestId next = bed.add(make_request(prompt + some_tokens(3, 2)));
  bed.run();
  EXPECT_EQ(bed.outcome(next).usage->cached_tokens, 40U);
  const RequestId again = bed.add(request);
  bed.run();
  EXPECT_EQ(bed.outcome(again).usage->cached_tokens, 39U);
}

TEST(NothingGenerated, APromptAsLongAsTheContext) {
  TestBed::Options options;
  options.num_blocks = 4;
  TestBed bed(options);
  GenerateRequest request = scored(some_tokens(64, 1), 0);
  const RequestId id = bed.add(request);
  bed.run();
  expect_equal(bed.outcome(id).prompt, expected_scores(request.prompt, 2));
  ASSERT_TRUE(bed.outcome(id).usage);
  EXPECT_FALSE(bed.try_add(make_request(some_tokens(65, 1), 0)));
}

TEST(NothingGenerated, WhoWaitsForItGoesOn) {
  TestBed::Options options;
  options.scheduler.prefill_chunk_tokens = 16;
  TestBed bed(options);
  const auto trunk = some_tokens(100, 1);
  bed.add(make_request(trunk, 0));
  bed.step(2);
  const RequestId branch = bed.add(make_request(trunk + some_tokens(5, 2)));
  bed.run();
  EXPECT_EQ(bed.outcome(branch).tokens(),
            expected_tokens(bed.request(branch), 0, bed.max_tokens()));
  EXPECT_EQ(bed.outcome(branch).usage->cached_tokens, 100U);
  EXPECT_EQ(bed.stats().tokens_prefilled, 105U);
}

}  // namespace
}  // namespace thaw::scheduler
