// Never N prefills: however requests that share a trunk arrive, it is computed once.

#include <gtest/gtest.h>

#include "tests/scheduler/test_bed.h"

namespace thaw::scheduler {
namespace {

constexpr std::uint32_t kTrunk = 2000;
constexpr std::uint32_t kSuffix = 20;

// Runs to the end; tokens are exact and usage agrees with the counter.
void expect_prefilled(TestBed& bed, std::uint64_t tokens) {
  bed.run_and_expect_exact();
  EXPECT_EQ(bed.stats().tokens_prefilled, tokens);
  EXPECT_EQ(bed.prefilled_by_usage(), tokens);
  EXPECT_EQ(bed.stats().tokens_reprefilled, 0U);
  EXPECT_EQ(bed.stats().preemptions, 0U);
}

GenerateRequest branch(const std::vector<TokenId>& trunk, std::uint64_t name) {
  return make_request(trunk + some_tokens(kSuffix, name), 8, name);
}

TEST(Sharing, EightTogether) {
  TestBed bed;
  const auto trunk = some_tokens(kTrunk, 1);
  for (std::uint64_t i = 0; i < 8; ++i)
    bed.add(branch(trunk, 10 + i));
  expect_prefilled(bed, kTrunk + 8 * kSuffix);
  EXPECT_EQ(bed.stats().trunk_waits, 7U);
  EXPECT_EQ(bed.stats().tokens_cached, 7U * kTrunk);
  // The first pays for the trunk.
  EXPECT_EQ(bed.outcome(1).usage->cached_tokens, 0U);
  for (RequestId id = 2; id <= 8; ++id)
    EXPECT_EQ(bed.outcome(id).usage->cached_tokens, kTrunk);
}

TEST(Sharing, EightIdentical) {
  TestBed bed;
  for (int i = 0; i < 8; ++i)
    bed.add(make_request(some_tokens(kTrunk, 1), 8));
  expect_prefilled(bed, kTrunk + 7);
}

TEST(Sharing, TrunkThatEndsInsideABlock) {
  for (std::size_t length : {500U, 505U, 511U, 512U, 513U}) {
    TestBed bed;
    const auto trunk = some_tokens(length, 1);
    for (std::uint64_t i = 0; i < 4; ++i)
      bed.add(branch(trunk, 10 + i));
    expect_prefilled(bed, length + 4 * kSuffix);
    EXPECT_EQ(bed.stats().copied_blocks, length % kBlockSize == 0 ? 0U : 3U);
  }
}

TEST(Sharing, SpreadOverSteps) {
  TestBed bed;
  const auto trunk = some_tokens(kTrunk, 1);
  for (std::uint64_t i = 0; i < 8; ++i) {
    bed.add(branch(trunk, 10 + i));
    bed.step(static_cast<int>(i));
  }
  expect_prefilled(bed, kTrunk + 8 * kSuffix);
}

TEST(Sharing, AtEveryMomentOfTheLeader) {
  const auto trunk = some_tokens(300, 1);
  for (int steps = 0; steps < 20; ++steps) {
    TestBed::Options options;
    options.scheduler.prefill_chunk_tokens = 37;
    TestBed bed(options);
    bed.add(branch(trunk, 10));
    bed.step(steps);
    bed.add(branch(trunk, 11));
    expect_prefilled(bed, 300 + 2 * kSuffix);
  }
}

TEST(Sharing, WithAStranger) {
  TestBed bed;
  const auto trunk = some_tokens(kTrunk, 1);
  for (std::uint64_t i = 0; i < 8; ++i) {
    bed.add(branch(trunk, 10 + i));
    if (i == 3) bed.add(make_request(some_tokens(700, 2), 8));
  }
  expect_prefilled(bed, kTrunk + 8 * kSuffix + 700);
}

TEST(Sharing, TwoFamilies) {
  TestBed bed;
  const auto one = some_tokens(kTrunk, 1);
  const auto two = some_tokens(kTrunk, 2);
  for (std::uint64_t i = 0; i < 4; ++i) {
    bed.add(branch(one, 10 + i));
    bed.add(branch(two, 20 + i));
  }
  expect_prefilled(bed, 2 * kTrunk + 8 * kSuffix);
}

TEST(Sharing, NestedTrunks) {
  TestBed bed;
  const auto outer = some_tokens(kTrunk, 1);
  const auto left = outer + some_tokens(300, 2);
  const auto right = outer + some_tokens(400, 3);
  for (std::uint64_t i = 0; i < 3; ++i) {
    bed.add(branch(left, 10 + i));
    bed.add(branch(right, 20 + i));
  }
  bed.add(branch(outer, 30));
  expect_prefilled(bed, kTrunk + 300 + 400 + 7 * kSuffix);
}

TEST(Sharing, ThreeHundredTokensAreShared) {
  TestBed bed;
  const auto trunk = some_tokens(kTrunk, 1);
  bed.add(branch(trunk, 10));
  bed.add(branch({trunk.begin(), trunk.begin() + 300}, 11));
  bed.add(branch({trunk.begin(), trunk.begin() + 301}, 12));
  bed.add(branch({trunk.begin(), trunk.begin() + 7}, 13));
  // The third shares one token more with the first than the second does.
  expect_prefilled(bed, kTrunk + 4 * kSuffix);
}

TEST(Sharing, AWaiterAttachesBeforeTheLeadersPromptEnds) {
  TestBed bed;
  const auto trunk = some_tokens(300, 1);
  const RequestId leader = bed.add(make_request(trunk + some_tokens(3000, 2), 8));
  const RequestId waiter = bed.add(branch(trunk, 11));
  expect_prefilled(bed, 3300 + kSuffix);
  EXPECT_LE(bed.outcome(waiter).choices.at(0).first_token_step, 5U);
  EXPECT_GE(bed.outcome(leader).choices.at(0).first_token_step, 25U);
}

TEST(Sharing, NothingAcrossSalts) {
  TestBed bed;
  const auto trunk = some_tokens(kTrunk, 1);
  for (std::uint64_t i = 0; i < 8; ++i) {
    auto request = branch(trunk, 10 + i);
    request.cache_salt = i % 2 == 0 ? "one" : "two";
    bed.add(request);
  }
  expect_prefilled(bed, 2 * kTrunk + 8 * kSuffix);
}

TEST(Sharing, NothingAcrossTenants) {
  TestBed bed;
  const auto trunk = some_tokens(kTrunk, 1);
  for (std::uint64_t i = 0; i < 4; ++i) {
    auto request = branch(trunk, 10 + i);
    request.tenant = i % 2 == 0 ? "one" : "two";
    bed.add(request);
  }
  expect_prefilled(bed, 2 * kTrunk + 4 * kSuffix);
}

TEST(Sharing, AWarmTrunkIsNotComputedAgain) {
  TestBed bed;
  const auto trunk = some_tokens(kTrunk, 1);
  bed.add(branch(trunk, 10));
  bed.run();
  for (std::uint64_t i = 0; i < 4; ++i)
    bed.add(branch(trunk, 20 + i));
  expect_prefilled(bed, kTrunk + 5 * kSuffix);
  EXPECT_EQ(bed.stats().trunk_waits, 0U);
}

TEST(Sharing, FirstCancelledInTheMiddleOfTheTrunk) {
  for (int steps : {0, 1, 5, 15}) {
    TestBed bed;
    const auto trunk = some_tokens(kTrunk, 1);
    for (std::uint64_t i = 0; i < 8; ++i)
      bed.add(branch(trunk, 10 + i));
    bed.step(steps);
    bed.scheduler().cancel(1);
    // The next one pays for the trunk, what the first had computed included.
    expect_prefilled(bed, kTrunk + 7 * kSuffix);
    EXPECT_EQ(bed.outcome(1).usage->cached_tokens, bed.outcome(1).usage->prompt_tokens);
    EXPECT_EQ(bed.outcome(2).usage->cached_tokens, 0U);
    EXPECT_EQ(bed.outcome(3).usage->cached_tokens, kTrunk);
  }
}

TEST(Sharing, OneAfterTheOtherCancelled) {
  TestBed bed;
  const auto trunk = some_tokens(kTrunk, 1);
  for (std::uint64_t i = 0; i < 5; ++i)
    bed.add(branch(trunk, 10 + i));
  for (RequestId id = 1; id <= 4; ++id) {
    bed.step(3);
    bed.scheduler().cancel(id);
  }
  expect_prefilled(bed, kTrunk + kSuffix);
  EXPECT_EQ(bed.outcome(5).usage->cached_tokens, 0U);
}

TEST(Sharing, AChargeMovesToWhoAttachedAlready) {
  TestBed bed;
  const auto trunk = some_tokens(300, 1);
  const RequestId leader = bed.add(make_request(trunk + some_tokens(1000, 2), 8));
  const RequestId follower = bed.add(branch(trunk, 11));
  bed.step(5);  // past the trunk, not past the leader's prompt
  ASSERT_FALSE(bed.outcome(leader).ended());
  ASSERT_FALSE(bed.outcome(follower).choices.empty());
  const std::uint64_t computed = bed.stats().tokens_prefilled;
  bed.scheduler().cancel(leader);
  bed.run_and_expect_exact();
  EXPECT_EQ(bed.outcome(follower).usage->cached_tokens, 0U);
  EXPECT_EQ(bed.outcome(leader).usage->prompt_tokens - bed.outcome(leader).usage->cached_tokens,
            computed - 300 - kSuffix);
  EXPECT_EQ(bed.prefilled_by_usage(), bed.stats().tokens_prefilled);
}

TEST(Sharing, TheLastWaitersLeavingEndsTheTrunk) {
  TestBed bed;
  const auto trunk = some_tokens(kTrunk, 1);
  for (std::uint64_t i = 0; i < 3; ++i)
    bed.add(branch(trunk, 10 + i));
  bed.step(4);
  for (RequestId id : {2, 1, 3})
    bed.scheduler().cancel(id);
  if (looks_ahead()) bed.step();  // what is in flight
  EXPECT_FALSE(bed.scheduler().has_work());
  EXPECT_EQ(bed.stats().tokens_prefilled, 4U * 128U);
  const auto checked = bed.scheduler().check_integrity();
  EXPECT_TRUE(checked) << checked.error().message;
}

TEST(Sharing, FewSlotsDoNotBreakIt) {
  TestBed::Options options;
  options.scheduler.max_num_seqs = 2;
  TestBed bed(options);
  const auto trunk = some_tokens(kTrunk, 1);
  for (std::uint64_t i = 0; i < 8; ++i)
    bed.add(branch(trunk, 10 + i));
  expect_prefilled(bed, kTrunk + 8 * kSuffix);
}

TEST(Sharing, APoolThatHoldsTrunkAndOneBranch) {
  TestBed::Options options;
  options.num_blocks = (kTrunk + kSuffix + 8) / kBlockSize + 1;
  TestBed bed(options);
  const auto trunk = some_tokens(kTrunk, 1);
  for (std::uint64_t i = 0; i < 8; ++i)
    bed.add(branch(trunk, 10 + i));
  bed.run_and_expect_exact();
  EXPECT_EQ(bed.stats().tokens_prefilled, kTrunk + 8 * kSuffix);
}

TEST(Sharing, AWaiterLendsItsPriority) {
  TestBed::Options options;
  options.scheduler.max_num_seqs = 1;
  TestBed bed(options);
  bed.add(make_request(some_tokens(100, 9), 30));  // holds the only slot
  bed.step();
  const auto trunk = some_tokens(300, 1);
  auto low = branch(trunk, 10);
  low.priority = 5;
  const RequestId leader = bed.add(low);
  const RequestId stranger = bed.add(make_request(some_tokens(50, 2), 4));
  auto high = branch(trunk, 11);
  high.priority = -1;
  const RequestId waiter = bed.add(high);
  expect_prefilled(bed, 100 + 300 + 50 + 2 * kSuffix);
  const auto first_step = [&](RequestId id) {
    return bed.outcome(id).choices.at(0).first_token_step;
  };
  EXPECT_LT(first_step(leader), first_step(stranger));
  EXPECT_LT(first_step(waiter), first_step(stranger));
}

TEST(Sharing, AdoptedBlocksAreFound) {
  const auto trunk = some_tokens(kTrunk, 1);
  std::vector<BlockEntry> published;
  FakeModel model(1024, 8192);
  ManualClock clock;
  const auto prefilled = [&](kv::RadixIndex& index, kv::BlockPool& pool) {
    std::vector<TokenId> tokens;
    const auto sink = [&](const GenerateEvent& event) {
      if (const auto* token = std::get_if<TokenEvent>(&event)) tokens.push_back(token->token);
    };
    Scheduler scheduler({}, model, index, pool, clock, sink);
    EXPECT_TRUE(scheduler.add(branch(trunk, 10)));
    while (scheduler.has_work())
      EXPECT_TRUE(scheduler.step());
    EXPECT_EQ(tokens, expected_tokens(branch(trunk, 10), 0, 8192));
    return scheduler.stats().tokens_prefilled;
  };
  {
    kv::BlockPool pool(1024);
    kv::RadixIndex index(pool, {[&](const auto& block) { published.push_back(block); }, {}});
    EXPECT_EQ(prefilled(index, pool), kTrunk + kSuffix);
  }
  // A worker has died; the memory is as it was, and its successor knows what was reported.
  kv::BlockPool pool(1024);
  kv::RadixIndex index(pool);
  EXPECT_EQ(index.adopt(published), published.size());
  EXPECT_EQ(prefilled(index, pool), (kTrunk + kSuffix) % kBlockSize);
}

}  // namespace
}  // namespace thaw::scheduler
