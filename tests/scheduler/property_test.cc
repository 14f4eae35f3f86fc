// Random schedules: whatever arrives, is cancelled, is preempted or evicted, every request gets the
// tokens that it would get alone.

#include <algorithm>
#include <memory>
#include <random>
#include <set>
#include <string>

#include <gtest/gtest.h>

#include "tests/scheduler/test_bed.h"

namespace thaw::scheduler {
namespace {

class RandomSchedule {
 public:
  explicit RandomSchedule(std::uint32_t seed) : random_(seed) {
    TestBed::Options options;
    options.num_blocks = 8 + draw(40);
    options.max_positions = 256;
    options.scheduler.max_num_seqs = 1 + draw(8);
    options.scheduler.prefill_chunk_tokens = 1 + draw(60);
    if (draw(3) == 0) options.scheduler.max_model_len = 64 + draw(150);
    bed_ = std::make_unique<TestBed>(options);
    for (std::uint64_t i = 0; i < 4; ++i)
      trunks_.push_back(some_tokens(1 + draw(90), 1 + i % 2) + some_tokens(draw(20), i));
  }

  void run() {
    const int num_requests = 4 + static_cast<int>(draw(12));
    for (int i = 0; i < num_requests; ++i) {
      (void)bed_->try_add(random_request());
      const auto steps = static_cast<int>(draw(4) == 0 ? draw(30) : draw(3));
      bed_->step(steps);
      if (draw(6) == 0) bed_->scheduler().cancel(1 + draw(static_cast<std::uint32_t>(i) + 1));
      if (draw(10) == 0) bed_->clock().advance(std::chrono::milliseconds(40));
      if (::testing::Test::HasFatalFailure()) return;
    }
    bed_->run_and_expect_exact();
    const auto& stats = bed_->stats();
    preemptions += stats.preemptions;
    trunk_waits += stats.trunk_waits;
    evicted += stats.evicted_blocks;
    copied += stats.copied_blocks;
  }

  std::uint64_t preemptions = 0, trunk_waits = 0, evicted = 0, copied = 0;

 private:
  std::uint32_t draw(std::uint32_t bound) { return random_() % bound; }

  GenerateRequest random_request() {
    // Prompts are cuts of few trunks with a tail of few letters, so that they share at any length.
    auto prompt = trunks_[draw(4)];
    if (draw(2) == 0) prompt.resize(1 + draw(static_cast<std::uint32_t>(prompt.size())));
    for (std::uint32_t i = draw(12); i > 0; --i)
      prompt.push_back(static_cast<TokenId>(draw(2)));
    auto request = make_request(std::move(prompt), 1 + draw(50));
    request.sampling.temperature = draw(2) == 0 ? 0.0F : 1.0F;
    request.sampling.seed = draw(3);
    request.sampling.ignore_eos = draw(3) != 0;
    if (draw(5) == 0) request.sampling.repetition_penalty = 1.3F;
    if (draw(5) == 0) request.sampling.min_tokens = request.sampling.max_tokens / 2;
    if (draw(4) == 0) request.sampling.stop_token_ids = {static_cast<TokenId>(draw(63))};
    if (draw(4) == 0) request.num_choices = 1 + draw(4);
    if (draw(6) == 0) request.cache_salt = "salt";
    if (draw(4) == 0) request.tenant = "tenant";
    if (draw(6) == 0) request.priority = static_cast<std::int32_t>(draw(3)) - 1;
    if (draw(12) == 0) request.deadline = std::chrono::milliseconds(30 + draw(60));
    if (draw(6) == 0) {
      const auto whole = expected_tokens(request, 1, bed_->max_tokens());
      request.resumed = {
          {1, {whole.begin(), whole.begin() + draw(static_cast<std::uint32_t>(whole.size()) + 1)}}};
      // A worker that dies after the last token but before a stop draws the stop again.
      if (request.resumed[0].generated.size() == whole.size()) request.resumed[0].generated.clear();
    }
    return request;
  }

  std::mt19937 random_;
  std::unique_ptr<TestBed> bed_;
  std::vector<std::vector<TokenId>> trunks_;
};

TEST(RandomSchedules, AreExact) {
  std::uint64_t preemptions = 0, trunk_waits = 0, evicted = 0, copied = 0;
  for (std::uint32_t seed = 0; seed < 2000; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    RandomSchedule schedule(seed);
    schedule.run();
    if (::testing::Test::HasFailure()) return;
    preemptions += schedule.preemptions;
    trunk_waits += schedule.trunk_waits;
    evicted += schedule.evicted;
    copied += schedule.copied;
  }
  // All of it has really happened.
  EXPECT_GT(preemptions, 1000U);
  EXPECT_GT(trunk_waits, 1000U);
  EXPECT_GT(evicted, 1000U);
  EXPECT_GT(copied, 1000U);
}

// In a pool with room for all, each distinct prefix of the prompts is computed once: the number of
// trie nodes, and one more for each prompt whose last token was there already.
TEST(RandomSchedules, ComputeEachPrefixOnce) {
  for (std::uint32_t seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937 random(seed);
    TestBed::Options options;
    options.num_blocks = 4000;
    options.scheduler.prefill_chunk_tokens = 1 + random() % 50;
    options.scheduler.max_num_seqs = 1 + random() % 10;
    TestBed bed(options);
    std::set<std::vector<TokenId>> prefixes;
    std::uint64_t expected = 0;
    for (std::uint32_t i = 2 + random() % 12; i > 0; --i) {
      auto prompt = some_tokens(1 + random() % 150, 1);
      for (std::uint32_t tail = random() % 30; tail > 0; --tail)
        prompt.push_back(static_cast<TokenId>(random() % 8 == 0 ? 1 : 0));
      std::uint64_t fresh = 0;
      for (std::size_t length = 1; length <= prompt.size(); ++length)
        fresh += prefixes.emplace(prompt.begin(), prompt.begin() + length).second ? 1 : 0;
      expected += std::max<std::uint64_t>(fresh, 1);
      bed.add(make_request(std::move(prompt), 1));
      bed.step(static_cast<int>(random() % 4));
    }
    bed.run_and_expect_exact();
    ASSERT_EQ(bed.stats().tokens_prefilled, expected);
    ASSERT_EQ(bed.prefilled_by_usage(), expected);
  }
}

}  // namespace
}  // namespace thaw::scheduler
