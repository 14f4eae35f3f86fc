#include <gtest/gtest.h>

#include "tests/scheduler/test_bed.h"

namespace thaw::scheduler {
namespace {

TestBed::Options pool_of(std::size_t num_blocks) {
  TestBed::Options options;
  options.num_blocks = num_blocks;
  return options;
}

TEST(Preemption, IsExact) {
  TestBed bed(pool_of(20));
  for (std::uint64_t i = 0; i < 6; ++i)
    bed.add(make_request(some_tokens(30 + 3 * i, 10 + i), 150, i));
  bed.run_and_expect_exact();
  EXPECT_GT(bed.stats().preemptions, 0U);
  EXPECT_GT(bed.stats().tokens_reprefilled, 0U);
  EXPECT_EQ(bed.stats().tokens_prefilled, 6U * 30U + 3U * 15U);
  EXPECT_EQ(bed.prefilled_by_usage(), bed.stats().tokens_prefilled);
}

TEST(Preemption, TakesTheLatestOfTheLowestPriority) {
  TestBed bed(pool_of(12));
  auto low = make_request(some_tokens(40, 1), 80);
  low.priority = 1;
  const RequestId first_low = bed.add(low);
  const RequestId high = bed.add(make_request(some_tokens(40, 2), 80));
  const RequestId later_high = bed.add(make_request(some_tokens(40, 3), 80));
  bed.run_and_expect_exact();
  ASSERT_GT(bed.stats().preemptions, 0U);
  EXPECT_EQ(bed.outcome(high).choices.at(0).tokens.size(), 80U);
  // Events carry no times; the steps tell: the first high one never stood still.
  EXPECT_LT(bed.outcome(high).choices.at(0).first_token_step, 3U);
  EXPECT_TRUE(bed.outcome(first_low).ended());
  EXPECT_TRUE(bed.outcome(later_high).ended());
}

TEST(Preemption, TheFirstIsNeverHeldUp) {
  TestBed bed(pool_of(14));
  const RequestId first = bed.add(make_request(some_tokens(40, 1), 150));
  for (std::uint64_t i = 0; i < 5; ++i)
    bed.add(make_request(some_tokens(40, 10 + i), 100));
  bed.step(2);
  std::size_t before = 0;
  while (!bed.outcome(first).ended()) {
    bed.step();
    ASSERT_EQ(bed.outcome(first).tokens().size(), ++before + 1) << "it stood still";
    if (bed.outcome(first).tokens().size() == 150) break;
  }
  bed.run_and_expect_exact();
  EXPECT_GT(bed.stats().preemptions, 0U);
}

TEST(Preemption, BlocksThatWerePublishedAreFoundAgain) {
  TestBed bed(pool_of(11));
  bed.add(make_request(some_tokens(60, 1), 40));
  bed.add(make_request(some_tokens(60, 2), 40));
  bed.run_and_expect_exact();
  EXPECT_GT(bed.stats().preemptions, 0U);
  // Far less than the whole sequence is computed again each time.
  EXPECT_LT(bed.stats().tokens_reprefilled, 100U * bed.stats().preemptions);
}

TEST(Preemption, ForkedChoicesInATinyPool) {
  TestBed bed(pool_of(9));
  auto request = make_request(some_tokens(50, 1), 70, 3);
  request.num_choices = 6;
  bed.add(request);
  bed.run_and_expect_exact();
  EXPECT_GT(bed.stats().preemptions, 0U);
  EXPECT_EQ(bed.stats().tokens_prefilled, 50U);
}

TEST(Preemption, TwoPrefillsThatDoNotFitTogether) {
  TestBed bed(pool_of(10));
  for (std::uint64_t i = 0; i < 3; ++i)
    bed.add(make_request(some_tokens(150, 10 + i), 5));
  bed.run_and_expect_exact();
  // Reservations keep them apart, so that none is computed in part and given up.
  EXPECT_EQ(bed.stats().preemptions, 0U);
  EXPECT_EQ(bed.stats().tokens_prefilled, 450U);
}

TEST(Preemption, EvictionIsExactAndCounted) {
  TestBed bed(pool_of(40));
  for (int round = 0; round < 4; ++round) {
    for (std::uint64_t i = 0; i < 6; ++i) {
      bed.add(make_request(some_tokens(150, 10 + i), 10, i));
      bed.run_and_expect_exact();
    }
  }
  EXPECT_GT(bed.stats().evicted_blocks, 100U);
  EXPECT_EQ(bed.prefilled_by_usage(), bed.stats().tokens_prefilled);
}

TEST(Preemption, OutsidersMayHoldBlocks) {
  TestBed bed(pool_of(10));
  std::vector<BlockId> held;
  for (int i = 0; i < 7; ++i)
    held.push_back(bed.pool().allocate());
  bed.add(make_request(some_tokens(100, 1), 20));
  bed.step(20);
  EXPECT_EQ(bed.stats().tokens_prefilled, 0U);
  for (BlockId block : held)
    bed.pool().release(block);
  bed.run_and_expect_exact();
}

// A request that goes on after its worker's death equals an unbroken one, wherever it was cut.
TEST(Resume, EqualsAnUnbrokenStream) {
  const auto prompt = some_tokens(45, 1);
  auto whole = make_request(prompt, 24, 5);
  whole.sampling.frequency_penalty = 0.7F;
  whole.num_choices = 2;
  const std::vector<TokenId> tokens[] = {expected_tokens(whole, 0, 8192),
                                         expected_tokens(whole, 1, 8192)};
  for (std::size_t cut = 0; cut <= 24; ++cut) {
    TestBed bed;
    auto rest = whole;
    rest.resumed = {{0, {tokens[0].begin(), tokens[0].begin() + cut}},
                    {1, {tokens[1].begin(), tokens[1].begin() + cut / 2}}};
    const RequestId id = bed.add(rest);
    bed.run_and_expect_exact();
    const Outcome& outcome = bed.outcome(id);
    if (cut < 24) {
      EXPECT_EQ(outcome.choices.at(0).first_index, cut);
    }
    EXPECT_EQ(outcome.choices.at(1).first_index, cut / 2);
    EXPECT_EQ(outcome.choices.at(0).finished, FinishReason::kLength);
    if (cut > 1) {
      EXPECT_EQ(bed.stats().tokens_prefilled, 0U);
    }
    EXPECT_GT(bed.stats().tokens_reprefilled, 0U);
  }
}

TEST(Resume, SharesItsTrunkWithTheOthers) {
  TestBed bed;
  const auto trunk = some_tokens(500, 1);
  for (std::uint64_t i = 0; i < 4; ++i) {
    auto request = make_request(trunk + some_tokens(20, 10 + i), 12, i);
    const auto whole = expected_tokens(request, 0, 8192);
    request.resumed = {{0, {whole.begin(), whole.begin() + 6}}};
    bed.add(request);
  }
  bed.run_and_expect_exact();
  EXPECT_EQ(bed.stats().tokens_reprefilled, 500U + 4U * 25U);
  EXPECT_EQ(bed.stats().tokens_prefilled, 0U);
}

TEST(Resume, OnlyTheChoicesNamedRun) {
  TestBed bed;
  auto request = make_request(some_tokens(20, 1), 12, 4);
  request.num_choices = 4;
  request.resumed = {{2, {}}, {3, {expected_tokens(request, 3, 8192)[0]}}};
  const RequestId id = bed.add(request);
  bed.run_and_expect_exact();
  EXPECT_EQ(bed.outcome(id).choices.size(), 2U);
  EXPECT_EQ(bed.outcome(id).tokens(2).size(), 12U);
  EXPECT_EQ(bed.outcome(id).tokens(3).size(), 11U);
}

}  // namespace
}  // namespace thaw::scheduler
