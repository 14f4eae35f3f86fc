// The next step is launched while one runs: what that wastes, what it waits for, and that nothing
// of it shows in what is generated.

#include <algorithm>

#include <gtest/gtest.h>

#include "tests/scheduler/test_bed.h"

namespace thaw::scheduler {
namespace {

TestBed::Options looking_ahead() {
  TestBed::Options options;
  options.look_ahead = true;
  return options;
}

/// Ends with a stop token after a few tokens, on this fake model.
GenerateRequest stopping_request(std::uint64_t name) {
  auto request = make_request(some_tokens(20, name), 500, name);
  request.sampling.ignore_eos = false;
  return request;
}

TEST(LookAhead, KeepsTwoStepsInFlightAndWastesNoneOnALimitOfLength) {
  TestBed bed(looking_ahead());
  bed.add(make_request(some_tokens(20, 1), 40));
  bed.add(make_request(some_tokens(300, 2), 30, 7));
  bed.step(10);
  EXPECT_EQ(bed.ahead().num_in_flight(), 1) << "one is collected each time, one runs";
  bed.run_and_expect_exact();
  EXPECT_EQ(bed.stats().tokens_discarded, 0U);
  // All but the first.
  EXPECT_EQ(bed.ahead().num_ahead(), bed.stats().steps - 1);
  EXPECT_EQ(bed.stats().tokens_decoded, 70U);
}

TEST(LookAhead, TakesNoMoreStepsThanWithout) {
  std::uint64_t steps[2];
  for (const bool look_ahead : {false, true}) {
    TestBed::Options options;
    options.look_ahead = look_ahead;
    TestBed bed(options);
    const auto trunk = some_tokens(1000, 1);
    for (std::uint64_t i = 0; i < 6; ++i)
      bed.add(make_request(trunk + some_tokens(20, 10 + i), 30, i));
    bed.run_and_expect_exact();
    EXPECT_EQ(bed.stats().trunk_waits, 5U);
    steps[look_ahead ? 1 : 0] = bed.stats().steps;
  }
  EXPECT_EQ(steps[1], steps[0]) << "branches must not wait for a step of their leader's";
}

TEST(LookAhead, AStopWastesOneRow) {
  TestBed bed(looking_ahead());
  for (std::uint64_t i = 1; i <= 8; ++i)
    bed.add(stopping_request(i));
  bed.run_and_expect_exact();
  for (RequestId id = 1; id <= 8; ++id)
    EXPECT_EQ(bed.outcome(id).choices.at(0).finished, FinishReason::kStop);
  EXPECT_EQ(bed.stats().tokens_discarded, 8U);
}

TEST(LookAhead, WhatAStoppedSequencePublishedIsFoundAgain) {
  TestBed bed(looking_ahead());
  const RequestId id = bed.add(stopping_request(3));
  bed.run_and_expect_exact();
  const std::uint64_t cached = bed.stats().tokens_cached;
  const auto answer = bed.request(id).prompt + bed.outcome(id).tokens();
  bed.add(make_request(answer + some_tokens(5, 9), 20));
  bed.run_and_expect_exact();
  EXPECT_EQ(bed.stats().tokens_cached - cached, answer.size());
}

TEST(LookAhead, TokensSampledOnTheHostAreAwaited) {
  TestBed bed(looking_ahead());
  auto penalised = make_request(some_tokens(20, 1), 40, 1);
  penalised.sampling.repetition_penalty = 1.3F;
  bed.add(penalised);
  auto ranked = make_request(some_tokens(20, 2), 40, 2);
  ranked.sampling.top_k = 5;
  bed.add(ranked);
  bed.add(make_request(some_tokens(20, 3), 60, 3));
  bed.run_and_expect_exact();
  EXPECT_EQ(bed.stats().tokens_discarded, 0U);
  // Forty steps of all three, in which everyone gets a token; then the last looks ahead.
  EXPECT_EQ(bed.stats().steps, 60U);
  EXPECT_EQ(bed.ahead().num_ahead(), 19U);
}

TEST(LookAhead, ChoicesStartFromOneRow) {
  TestBed bed(looking_ahead());
  auto request = make_request(some_tokens(50, 1), 30, 1);
  request.num_choices = 4;
  bed.add(request);
  bed.run_and_expect_exact();
  EXPECT_EQ(bed.stats().tokens_prefilled, 50U);
  EXPECT_EQ(bed.stats().steps, 30U);
  EXPECT_EQ(bed.ahead().num_ahead(), 28U);
}

TEST(LookAhead, ARowWithoutNumbersFailsItsRequestOnly) {
  TestBed bed(looking_ahead());
  const RequestId bad = bed.add(make_request(some_tokens(20, 1), 40));
  bed.step(4);
  const std::size_t before = bed.outcome(bad).tokens().size();
  bed.model().make_logits_nan();
  bed.run();
  ASSERT_TRUE(bed.outcome(bad).error);
  EXPECT_EQ(bed.outcome(bad).error->code, Errc::kInternal);
  EXPECT_LE(bed.outcome(bad).tokens().size(), before + 1);
  EXPECT_EQ(bed.stats().tokens_discarded, 1U);
}

TEST(LookAhead, ACancelledRequestLeavesNothingBehind) {
  for (int steps = 0; steps < 8; ++steps) {
    TestBed::Options options = looking_ahead();
    options.num_blocks = 40;
    options.scheduler.prefill_chunk_tokens = 64;
    TestBed bed(options);
    const RequestId id = bed.add(make_request(some_tokens(200, 1), 40));
    const RequestId other = bed.add(make_request(some_tokens(30, 2), 40));
    bed.step(steps);
    bed.scheduler().cancel(id);
    ASSERT_TRUE(bed.scheduler().check_integrity());
    EXPECT_TRUE(bed.outcome(id).ended());
    // Its blocks can be had at once, also by someone who needs nearly all.
    bed.add(make_request(some_tokens(520, 3), 20));
    bed.run_and_expect_exact();
    EXPECT_EQ(bed.outcome(other).tokens().size(), 40U);
  }
}

TEST(LookAhead, WorkIsLeftUntilTheLastStepIsCollected) {
  TestBed bed(looking_ahead());
  const RequestId id = bed.add(make_request(some_tokens(20, 1), 40));
  bed.step(5);
  ASSERT_EQ(bed.ahead().num_in_flight(), 1);
  bed.scheduler().cancel(id);
  EXPECT_TRUE(bed.scheduler().has_work());
  bed.step();
  EXPECT_FALSE(bed.scheduler().has_work());
  EXPECT_EQ(bed.ahead().num_in_flight(), 0);
  EXPECT_EQ(bed.stats().tokens_discarded, 1U);
}

TEST(LookAhead, ADeadlinePassesWhileStepsAreInFlight) {
  TestBed bed(looking_ahead());
  auto request = make_request(some_tokens(300, 1), 40);
  request.deadline = std::chrono::milliseconds(50);
  const RequestId id = bed.add(request);
  const RequestId other = bed.add(make_request(some_tokens(20, 2), 40, 5));
  bed.step(6);
  bed.clock().advance(std::chrono::milliseconds(60));
  bed.run_and_expect_exact();
  ASSERT_TRUE(bed.outcome(id).error);
  EXPECT_EQ(bed.outcome(id).error->code, Errc::kDeadlineExceeded);
  EXPECT_EQ(bed.outcome(other).tokens().size(), 40U);
}

TEST(LookAhead, NobodyIsPreemptedWithRowsInFlight) {
  TestBed::Options options = looking_ahead();
  options.num_blocks = 20;
  TestBed bed(options);
  for (std::uint64_t i = 0; i < 6; ++i)
    bed.add(make_request(some_tokens(30 + 3 * i, 10 + i), 150, i));
  bed.run_and_expect_exact();
  EXPECT_GT(bed.stats().preemptions, 0U);
  EXPECT_EQ(bed.stats().tokens_discarded, 0U);
}

TEST(LookAhead, IsNotTakenWhereSomeoneWantsToSeeTheLogits) {
  TestBed::Options options = looking_ahead();
  std::size_t seen = 0;
  options.scheduler.on_logits = [&](RequestId, std::uint32_t, std::uint32_t,
                                    std::span<const float> logits) {
    EXPECT_EQ(logits.size(), static_cast<std::size_t>(kFakeVocab));
    ++seen;
  };
  TestBed bed(options);
  bed.add(make_request(some_tokens(20, 1), 40));
  bed.run_and_expect_exact();
  EXPECT_EQ(seen, 40U);
  EXPECT_EQ(bed.ahead().num_ahead(), 0U);
}

}  // namespace
}  // namespace thaw::scheduler
