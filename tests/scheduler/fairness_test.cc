#include <numeric>

#include <gtest/gtest.h>

#include "engine/scheduler/deficit_round_robin.h"
#include "tests/scheduler/test_bed.h"

namespace thaw::scheduler {
namespace {

using Job = DeficitRoundRobin::Job;

std::vector<std::uint32_t> grants(const std::vector<Job>& jobs) {
  std::vector<std::uint32_t> result;
  for (const Job& job : jobs)
    result.push_back(job.grant);
  return result;
}

TEST(DeficitRoundRobin, MeetsAllDemandThatFits) {
  DeficitRoundRobin share;
  std::vector<Job> jobs{{"a", 1, 20}, {"a", 2, 5}, {"b", 3, 70}};
  EXPECT_EQ(share.share(jobs, 128), 33U);
  EXPECT_EQ(grants(jobs), (std::vector<std::uint32_t>{20, 5, 70}));
  EXPECT_EQ(share.share({}, 128), 128U);
}

TEST(DeficitRoundRobin, TenantsGetEqualSharesWhateverTheyAskFor) {
  DeficitRoundRobin share;
  std::vector<std::uint64_t> totals(4, 0);
  for (int step = 0; step < 300; ++step) {
    std::vector<Job> jobs{{"a", 1, 4000}, {"a", 2, 4000}, {"a", 3, 4000}, {"b", 4, 4000}};
    EXPECT_EQ(share.share(jobs, 100), 0U);
    for (std::size_t i = 0; i < 4; ++i)
      totals[i] += jobs[i].grant;
  }
  EXPECT_NEAR(static_cast<double>(totals[3]), 15000.0, 32.0);
  for (std::size_t i = 0; i < 3; ++i)
    EXPECT_NEAR(static_cast<double>(totals[i]), 5000.0, 32.0);
}

TEST(DeficitRoundRobin, ServesEveryoneWithABudgetOfOne) {
  DeficitRoundRobin share;
  std::vector<std::uint64_t> totals(3, 0);
  for (int step = 0; step < 300; ++step) {
    std::vector<Job> jobs{{"a", 1, 10}, {"b", 2, 10}, {"c", 3, 10}};
    EXPECT_EQ(share.share(jobs, 1), 0U);
    for (std::size_t i = 0; i < 3; ++i)
      totals[i] += jobs[i].grant;
  }
  EXPECT_EQ(std::accumulate(totals.begin(), totals.end(), std::uint64_t{0}), 300U);
  for (std::uint64_t total : totals)
    EXPECT_NEAR(static_cast<double>(total), 100.0, 16.0);
}

TEST(DeficitRoundRobin, TenantsMayComeAndGo) {
  DeficitRoundRobin share;
  std::vector<Job> first{{"b", 1, 500}};
  share.share(first, 10);
  EXPECT_EQ(first[0].grant, 10U);
  std::vector<Job> second{{"a", 2, 500}, {"c", 3, 500}};
  share.share(second, 64);
  EXPECT_EQ(second[0].grant + second[1].grant, 64U);
}

std::uint64_t first_token_step(const TestBed& bed, RequestId id) {
  return bed.outcome(id).choices.at(0).first_token_step;
}

// The bound that docs state: half a chunk a step behind one other prefill.
TEST(Fairness, AShortStrangerBehindALongTrunkStartsWithinThreeSteps) {
  for (const char* tenant : {"", "other"}) {
    TestBed bed;
    const auto trunk = some_tokens(4000, 1);
    for (std::uint64_t i = 0; i < 8; ++i)
      bed.add(make_request(trunk + some_tokens(20, 10 + i), 8));
    bed.step(3);
    auto stranger = make_request(some_tokens(100, 2), 4);
    stranger.tenant = tenant;
    const std::uint64_t added_at = bed.stats().steps;
    const RequestId id = bed.add(stranger);
    bed.run_and_expect_exact();
    EXPECT_LE(first_token_step(bed, id) - added_at, 3U) << "tenant '" << tenant << "'";
  }
}

TEST(Fairness, ATenantWithManyLongPromptsDoesNotHoldUpAnother) {
  TestBed bed;
  for (std::uint64_t i = 0; i < 10; ++i)
    bed.add(make_request(some_tokens(2000, 10 + i), 8));
  bed.step(2);
  auto stranger = make_request(some_tokens(120, 2), 4);
  stranger.tenant = "other";
  const std::uint64_t added_at = bed.stats().steps;
  const RequestId id = bed.add(stranger);
  bed.run_and_expect_exact();
  EXPECT_LE(first_token_step(bed, id) - added_at, 3U);
}

TEST(Fairness, SlotsGoToTheTenantWithFewest) {
  TestBed::Options options;
  options.scheduler.max_num_seqs = 4;
  TestBed bed(options);
  for (std::uint64_t i = 0; i < 12; ++i)
    bed.add(make_request(some_tokens(20, 10 + i), 20));
  bed.step();
  auto stranger = make_request(some_tokens(20, 2), 4);
  stranger.tenant = "other";
  const RequestId id = bed.add(stranger);
  bed.run_and_expect_exact();
  // It is next when the first four are done, before the eight that queued earlier.
  EXPECT_LE(first_token_step(bed, id), 22U);
}

TEST(Fairness, PriorityGoesFirst) {
  TestBed::Options options;
  options.scheduler.prefill_chunk_tokens = 32;
  TestBed bed(options);
  auto request = make_request(some_tokens(320, 1), 4);
  const RequestId ordinary = bed.add(request);
  request = make_request(some_tokens(320, 2), 4);
  request.priority = -1;
  const RequestId urgent = bed.add(request);
  bed.run_and_expect_exact();
  EXPECT_LE(first_token_step(bed, urgent), 10U);
  EXPECT_GE(first_token_step(bed, ordinary), 19U);
}

TEST(Fairness, DecodingNeverWaitsForPrefill) {
  TestBed bed;
  const RequestId decoding = bed.add(make_request(some_tokens(10, 1), 30));
  bed.step();
  bed.add(make_request(some_tokens(4000, 2), 4));
  for (std::size_t step = 1; step < 30; ++step) {
    EXPECT_EQ(bed.outcome(decoding).tokens().size(), step);
    bed.step();
    EXPECT_LE(bed.model().largest_prefill(), 128);
  }
  EXPECT_TRUE(bed.outcome(decoding).ended());
  bed.run_and_expect_exact();
}

TEST(Fairness, SmallSuffixesShareAStep) {
  TestBed bed;
  const auto trunk = some_tokens(500, 1);
  bed.add(make_request(trunk, 1));
  bed.run();
  const std::uint64_t before = bed.stats().steps;
  for (std::uint64_t i = 0; i < 6; ++i)
    bed.add(make_request(trunk + some_tokens(20, 10 + i), 1));
  bed.run_and_expect_exact();
  EXPECT_EQ(bed.stats().steps - before, 1U);
}

}  // namespace
}  // namespace thaw::scheduler
