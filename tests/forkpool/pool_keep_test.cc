// Trunks that callers keep, and those that workers offer: pins and snapshots in the arena, by a
// pool of fake workers.

#include <chrono>
#include <future>

#include <gtest/gtest.h>

#include "tests/forkpool/trunk_calls.h"

namespace thaw::forkpool {
namespace {

using std::chrono::seconds;

constexpr std::uint64_t kTokenBytes = 16;  // the fake's blocks have 256 bytes

class PoolKeepTest : public testing::Test {
 protected:
  void start(PoolOptions options = PoolHarness::options(), const std::string& rules = "") {
    harness.emplace(rules, std::move(options));
    ASSERT_TRUE(harness->wait_ready());
  }
  /// Has a worker compute a prompt.
  void prefill(const std::vector<TokenId>& prompt, const std::string& tenant = "") {
    GenerateRequest request = make_request(++last_id, prompt, 1);
    request.tenant = tenant;
    harness->submit({request});
    ASSERT_TRUE(harness->wait_ended(last_id));
    ASSERT_FALSE(harness->stream(last_id).failed);
  }
  Result<KeptTrunk> keep(const PinId& pin, const std::vector<TokenId>& tokens,
                         const std::string& tenant = "", seconds ttl = seconds(0)) {
    return keep_trunk(harness->pool(), pin, tokens, tenant, ttl);
  }

  std::optional<PoolHarness> harness;
  RequestId last_id = 0;
};

TEST_F(PoolKeepTest, CoversWhatIsAliveInWholeBlocks) {
  start();
  const auto prompt = make_prompt(100, 1);
  prefill(prompt);
  auto longer = prompt;
  longer.resize(200, 5);
  const auto kept = keep("a", longer);
  ASSERT_TRUE(kept) << kept.error().to_string();
  EXPECT_EQ(kept->num_tokens, 96U);
  EXPECT_EQ(kept->bytes, 96 * kTokenBytes);
  EXPECT_TRUE(harness->wait([&] { return harness->pool().status().snapshots == 1; }));
  // A prefix of it needs no copy of its own.
  const auto prefix = keep("b", {prompt.begin(), prompt.begin() + 40});
  ASSERT_TRUE(prefix) << prefix.error().to_string();
  EXPECT_EQ(prefix->num_tokens, 32U);
  EXPECT_TRUE(harness->wait([&] { return harness->pool().status().snapshots == 1; }));
}

TEST_F(PoolKeepTest, AnOfferedTrunkIsCopied) {
  start(PoolHarness::options(), "*:offer_and_lose=0");
  prefill(make_prompt(100, 1));
  ASSERT_TRUE(harness->wait([&] { return harness->pool().status().snapshots == 1; }));
  EXPECT_EQ(harness->pool().status().arena.written_bytes, 96 * kTokenBytes);
}

TEST_F(PoolKeepTest, WhatEvictionLeavesOfAnOfferedTrunkIsCopied) {
  start(PoolHarness::options(), "*:offer_and_lose=2");
  const auto prompt = make_prompt(100, 1);
  prefill(prompt);
  ASSERT_TRUE(harness->wait([&] { return harness->pool().status().snapshots == 1; }));
  EXPECT_EQ(harness->pool().status().arena.written_bytes, 64 * kTokenBytes);
  const auto kept = keep("a", prompt);
  ASSERT_TRUE(kept) << kept.error().to_string();
  EXPECT_EQ(kept->num_tokens, 64U);
}

TEST_F(PoolKeepTest, AnOfferedTrunkThatIsGoneIsLet) {
  start(PoolHarness::options(), "*:offer_and_lose=6");
  const auto prompt = make_prompt(100, 1);
  prefill(prompt);
  prefill(prompt);  // behind what the offer came to
  EXPECT_EQ(harness->pool().status().arena.written_bytes, 0U);
}

TEST_F(PoolKeepTest, PinsHoldAgainstEvictionAndReleaseLetsGo) {
  PoolOptions options = PoolHarness::options();
  options.arena_bytes = 64 * 256;  // 1,024 tokens
  start(options);
  const auto first = make_prompt(640, 1);
  const auto second = make_prompt(640, 2);
  prefill(first);
  prefill(second);
  ASSERT_TRUE(keep("first", first));
  const auto full = keep("second", second);
  ASSERT_FALSE(full);
  EXPECT_EQ(full.error().code, Errc::kResourceExhausted) << full.error().to_string();
  harness->pool().release("unknown");
  harness->pool().release("first");
  const auto kept = keep("second", second);
  ASSERT_TRUE(kept) << kept.error().to_string();
  EXPECT_EQ(kept->num_tokens, 640U);
  EXPECT_TRUE(harness->wait([&] { return harness->pool().status().snapshots == 1; }))
      << "the released one made room";
}

TEST_F(PoolKeepTest, APinHoldsTheNewTrunkInsteadOfTheOld) {
  PoolOptions options = PoolHarness::options();
  options.arena_bytes = 64 * 256;
  start(options);
  const auto first = make_prompt(256, 1);  // a page of the arena each
  const auto second = make_prompt(256, 2);
  const auto third = make_prompt(768, 3);
  for (const auto& prompt : {first, second, third})
    prefill(prompt);
  ASSERT_TRUE(keep("a", first));
  ASSERT_TRUE(keep("a", second));
  ASSERT_TRUE(keep("a", second)) << "again";
  ASSERT_TRUE(keep("b", third)) << "evicts the first";
  EXPECT_FALSE(keep("c", make_prompt(16, 4)));
  EXPECT_EQ(keep("d", second)->num_tokens, 256U) << "still there";
}

TEST_F(PoolKeepTest, PinsExpire) {
  PoolOptions options = PoolHarness::options();
  options.arena_bytes = 64 * 256;
  start(options);
  const auto first = make_prompt(640, 1);
  const auto second = make_prompt(640, 2);
  prefill(first);
  prefill(second);
  ASSERT_TRUE(keep("first", first, "", seconds(1)));
  EXPECT_TRUE(harness->wait([&] { return keep("second", second).has_value(); }));
}

TEST_F(PoolKeepTest, OtherOwnersSeeNothing) {
  start();
  const auto prompt = make_prompt(64, 1);
  prefill(prompt, "mine");
  ASSERT_TRUE(keep("a", prompt, "mine"));
  const auto theirs = keep("b", prompt, "theirs");
  ASSERT_FALSE(theirs);
  EXPECT_EQ(theirs.error().code, Errc::kNotFound);
}

TEST_F(PoolKeepTest, RefusesWhatCannotBeKept) {
  start();
  const auto code = [](const Result<KeptTrunk>& result) {
    return result ? Errc::kInternal : result.error().code;
  };
  const auto prompt = make_prompt(64, 1);
  EXPECT_EQ(code(keep("a", prompt)), Errc::kNotFound);
  EXPECT_EQ(code(keep("", prompt)), Errc::kInvalidArgument);
  EXPECT_EQ(code(keep(std::string(2000, 'p'), prompt)), Errc::kInvalidArgument);
  EXPECT_EQ(code(keep("a", make_prompt(15, 1))), Errc::kInvalidArgument);
  EXPECT_EQ(code(keep("a", std::vector<TokenId>(16, -1))), Errc::kInvalidArgument);
  EXPECT_EQ(code(keep("a", prompt, "", seconds(-1))), Errc::kInvalidArgument);
  EXPECT_EQ(code(keep("a", prompt, "", seconds::max())), Errc::kInvalidArgument);
}

TEST_F(PoolKeepTest, WithoutAnArenaNothingIsKept) {
  PoolOptions options = PoolHarness::options();
  options.arena_bytes = 0;
  start(options);
  const auto prompt = make_prompt(64, 1);
  prefill(prompt);
  EXPECT_EQ(keep("a", prompt).error().code, Errc::kUnsupported);
}

TEST_F(PoolKeepTest, ADeadWorkersTrunkIsStillThere) {
  start();
  const auto prompt = make_prompt(64, 1);
  prefill(prompt);
  ASSERT_TRUE(keep("a", prompt));
  ASSERT_TRUE(harness->kill_worker(0));
  ASSERT_TRUE(harness->wait_ready());
  EXPECT_EQ(keep("b", prompt)->num_tokens, 64U);
}

TEST_F(PoolKeepTest, AnswersOnceWhateverHappensToTheWorker) {
  start(PoolHarness::options(), "*:stall_snapshots");
  const auto prompt = make_prompt(64, 1);
  prefill(prompt);
  auto answers = std::make_shared<std::promise<Error>>();
  auto answered = answers->get_future();
  harness->pool().keep({"a", {}, prompt, seconds(0)}, [answers](const Result<KeptTrunk>& kept) {
    answers->set_value(kept.error());
  });
  harness->pool().release("a");
  ASSERT_EQ(answered.wait_for(seconds(30)), std::future_status::ready);
  EXPECT_EQ(answered.get().code, Errc::kCancelled);

  auto last = std::make_shared<std::promise<Error>>();
  auto ended = last->get_future();
  harness->pool().keep({"b", {}, prompt, seconds(0)},
                       [last](const Result<KeptTrunk>& kept) { last->set_value(kept.error()); });
  harness.reset();
  ASSERT_EQ(ended.wait_for(seconds(0)), std::future_status::ready);
  EXPECT_EQ(ended.get().code, Errc::kUnavailable);
}

}  // namespace
}  // namespace thaw::forkpool
