// The pool with real workers on the tiny model: whatever happens to a worker, the client is sent
// the tokens that an undisturbed run would have sent. This binary is its own worker.

#include <unistd.h>

#include <filesystem>
#include <string_view>

#include <gtest/gtest.h>

#include "engine/base/memory_map.h"
#include "engine/model/model.h"
#include "forkpool/worker/worker.h"
#include "tests/forkpool/pool_harness.h"
#include "tests/forkpool/tiny_image.h"

namespace thaw::forkpool {
namespace {

using std::chrono::milliseconds;
using test::tiny_image;

PoolOptions real_options(std::uint32_t num_workers) {
  PoolOptions options = PoolHarness::options(num_workers);
  options.worker_binary = std::filesystem::read_symlink("/proc/self/exe");
  options.kv_bytes = 512 * model::kv_block_bytes(tiny_image().config, ops::KvDType::kBF16);
  options.arena_bytes = 16 << 20;
  options.prefill_chunk_tokens = 32;
  options.log_level = "off";
  return options;
}

WeightsMemory weights() {
  return {UniqueFd(::dup(tiny_image().fd.get())), tiny_image().size_bytes, {}};
}

GenerateRequest tiny_request(RequestId id, std::size_t prompt_tokens, std::uint64_t prompt_seed,
                             std::uint32_t max_tokens) {
  GenerateRequest request = make_request(id, make_prompt(prompt_tokens, prompt_seed), max_tokens);
  for (TokenId& token : request.prompt)
    token %= static_cast<TokenId>(tiny_image().config.vocab_size);
  request.sampling.temperature = 1.0F;
  request.sampling.repetition_penalty = 1.1F;  // counts what was generated before a death, too
  request.sampling.ignore_eos = true;
  return request;
}

/// The tokens of each choice of an undisturbed run on one worker.
std::map<RequestId, std::map<std::uint32_t, std::vector<TokenId>>> undisturbed(
    const std::vector<GenerateRequest>& requests) {
  PoolHarness harness("", real_options(1), weights());
  std::map<RequestId, std::map<std::uint32_t, std::vector<TokenId>>> tokens;
  for (GenerateRequest request : requests) {
    request.worker.reset();
    harness.submit({request});  // one after the other: each alone
    EXPECT_TRUE(harness.wait_ended(request.id));
    tokens[request.id] = harness.stream(request.id).tokens;
  }
  return tokens;
}

TEST(ForkPoolWorker, KilledStreamsSayWhatUndisturbedOnesDo) {
  std::vector<GenerateRequest> requests;
  for (RequestId id = 1; id <= 6; ++id) {
    requests.push_back(tiny_request(id, 60 + 7 * id, id % 2, 150));
    requests.back().num_choices = id == 3 ? 2 : 1;
    requests.back().worker = static_cast<std::uint32_t>(id % 2);
  }
  const auto expected = undisturbed(requests);

  PoolHarness harness("", real_options(2), weights());
  ASSERT_TRUE(harness.wait_ready());
  harness.submit(requests);
  ASSERT_TRUE(harness.wait_tokens(1, 5));
  ASSERT_TRUE(harness.kill_worker(1));
  ASSERT_TRUE(harness.wait_tokens(2, 40));
  ASSERT_TRUE(harness.kill_worker(0));
  for (const GenerateRequest& request : requests) {
    SCOPED_TRACE("request " + std::to_string(request.id));
    ASSERT_TRUE(harness.wait_ended(request.id));
    const auto stream = harness.stream(request.id);
    ASSERT_FALSE(stream.failed) << stream.failed->to_string();
    EXPECT_TRUE(stream.in_order);
    EXPECT_EQ(stream.tokens, expected.at(request.id));
    ASSERT_TRUE(stream.completed);
    EXPECT_EQ(stream.completed->generated_tokens, 150 * request.num_choices);
    EXPECT_EQ(stream.completed->prompt_tokens, request.prompt.size());
  }
  const PoolStatus status = harness.pool().status();
  EXPECT_EQ(status.worker_deaths, 2U);
  EXPECT_GT(status.requests_resumed, 0U);  // the path meant was taken
}

TEST(ForkPoolWorker, ATrunkOutlivesItsWorker) {
  const GenerateRequest first = tiny_request(1, 200, 1, 8);
  GenerateRequest second = first;
  second.id = 2;
  PoolHarness harness("", real_options(1), weights());
  harness.submit({first});
  ASSERT_TRUE(harness.wait_ended(1));
  ASSERT_TRUE(harness.kill_worker(0));
  ASSERT_TRUE(harness.wait_ready());
  EXPECT_GE(harness.worker(0).adopted_blocks, 12U);
  harness.submit({second});
  ASSERT_TRUE(harness.wait_ended(2));
  EXPECT_EQ(harness.stream(2).tokens, harness.stream(1).tokens);
  EXPECT_GE(harness.stream(2).completed->cached_tokens, 192U);
}

TEST(ForkPoolWorker, ACopiedTrunkAnswersTheSame) {
  for (const TransferWay way : {TransferWay::kPeer, TransferWay::kArena}) {
    SCOPED_TRACE(way == TransferWay::kPeer ? "straight" : "through the arena");
    GenerateRequest request = tiny_request(1, 200, 1, 40);
    request.worker = 0;
    PoolOptions options = real_options(2);
    options.peer_copies = true;
    PoolHarness harness("", options, weights());
    ASSERT_TRUE(harness.wait_ready());
    harness.submit({request});
    ASSERT_TRUE(harness.wait_ended(1));
    const auto moved = harness.pool().transfer(request, 0, 1, milliseconds(20000), way);
    ASSERT_TRUE(moved) << moved.error().to_string();
    EXPECT_EQ(*moved, 192U);
    EXPECT_EQ(harness.pool().status().snapshots, way == TransferWay::kPeer ? 0U : 1U);
    // Back and forth without a pause: what is restored is known there when it is asked for next.
    for (const auto& [from, to] : {std::pair(1U, 0U), std::pair(0U, 1U), std::pair(1U, 0U)}) {
      const auto again = harness.pool().transfer(request, from, to, milliseconds(20000), way);
      ASSERT_TRUE(again) << again.error().to_string();
      EXPECT_EQ(*again, 192U);
    }
    request.id = 2;
    request.worker = 1;
    harness.submit({request});
    ASSERT_TRUE(harness.wait_ended(2));
    EXPECT_EQ(harness.stream(2).tokens, harness.stream(1).tokens);
    EXPECT_EQ(harness.stream(2).completed->cached_tokens, 192U);
    EXPECT_TRUE(harness.pool().shutdown(milliseconds(20000)));
  }
}

TEST(ForkPoolWorker, AnEvictedTrunkComesBackFromTheArena) {
  // Long ones: at any speed, computing them takes longer than copying the little KV of this model.
  constexpr std::size_t kPromptTokens = 1210;
  constexpr std::uint32_t kWholeTokens = kPromptTokens / kBlockSize * kBlockSize;
  constexpr std::size_t kTrunkBlocks = kPromptTokens / kBlockSize + 2;  // with the answer
  constexpr std::uint64_t kPoolTrunks = 8;
  constexpr std::uint64_t kTrunks = kPoolTrunks + 2;
  PoolOptions options = real_options(1);
  options.kv_bytes =
      kPoolTrunks * kTrunkBlocks * model::kv_block_bytes(tiny_image().config, ops::KvDType::kBF16);
  options.fork_min_prefix_tokens = 64;
  options.max_num_seqs = 2;
  PoolHarness harness("", options, weights());
  ASSERT_TRUE(harness.wait_ready());
  RequestId id = 0;
  const auto run = [&](std::uint64_t trunk) {
    GenerateRequest request = tiny_request(++id, kPromptTokens, trunk, 20);
    request.sampling.seed = trunk;
    harness.submit({request});
    EXPECT_TRUE(harness.wait_ended(id));
    const auto stream = harness.stream(id);
    EXPECT_FALSE(stream.failed) << stream.failed->to_string();
    return std::pair(stream.tokens, stream.completed ? stream.completed->cached_tokens : 0);
  };
  std::vector<std::map<std::uint32_t, std::vector<TokenId>>> cold;
  for (std::uint64_t trunk = 0; trunk < kTrunks; ++trunk) {
    SCOPED_TRACE(trunk);
    const auto [tokens, cached] = run(trunk);
    EXPECT_EQ(cached, 0U);
    cold.push_back(tokens);
    // The worker offers what lies within a quarter of the pool, two trunks, of being evicted. It is
    // copied while nothing asks for its blocks: the next trunk comes when that is done.
    const std::uint64_t num_ran = trunk + 1;
    const std::uint64_t copied = num_ran > kPoolTrunks - 2 ? num_ran - (kPoolTrunks - 2) : 0;
    ASSERT_TRUE(harness.wait([&] { return harness.worker(0).stats.snapshots >= copied; }));
  }
  // Two trunks are gone, and the two that come next are copied too.
  EXPECT_GE(harness.worker(0).stats.evicted_blocks, kWholeTokens / kBlockSize * 2);
  EXPECT_EQ(harness.pool().status().tokens_restored, 0U);
  constexpr std::uint64_t kCopied = 4;
  for (std::uint64_t trunk = 0; trunk < kCopied; ++trunk) {
    SCOPED_TRACE(trunk);
    const auto [tokens, cached] = run(trunk);
    EXPECT_EQ(tokens, cold[trunk]);
    EXPECT_GE(cached, kWholeTokens);
  }
  ASSERT_TRUE(harness.wait([&] { return harness.worker(0).stats.restores >= kCopied; }));
  EXPECT_GE(harness.pool().status().arena.hits, kCopied);
  EXPECT_GE(harness.pool().status().tokens_restored, 2 * kWholeTokens);
  // The others may lose to what restores take before they are copied; never a bit of the answer.
  for (std::uint64_t trunk = 0; trunk < kTrunks; ++trunk) {
    SCOPED_TRACE(trunk);
    EXPECT_EQ(run(trunk).first, cold[trunk]);
  }
  // A worker's death takes nothing from the arena.
  ASSERT_TRUE(harness.kill_worker(0));
  ASSERT_TRUE(harness.wait_ready());
  const auto [tokens, cached] = run(0);
  EXPECT_EQ(tokens, cold[0]);
  EXPECT_GE(cached, kWholeTokens);
}

TEST(ForkPoolWorker, CancelFreesTheBlocks) {
  PoolHarness harness("", real_options(1), weights());
  ASSERT_TRUE(harness.wait_ready());
  const GenerateRequest request = tiny_request(1, 100, 1, 1500);
  harness.submit({request});
  ASSERT_TRUE(harness.wait_tokens(1, 3));
  harness.pool().cancel(1);
  ASSERT_TRUE(harness.wait_ended(1));
  EXPECT_EQ(harness.stream(1).finished.at(0), FinishReason::kCancelled);
  ASSERT_TRUE(harness.wait([&] {
    const EngineStats stats = harness.worker(0).stats;
    return stats.running == 0 && stats.blocks_free == stats.blocks_total;
  }));
}

TEST(ForkPoolWorker, WhatTheWorkerRefusesIsTheClientsAnswer) {
  PoolHarness harness("", real_options(1), weights());
  GenerateRequest request = tiny_request(1, 20, 1, 4);
  request.sampling.temperature = -1.0F;
  harness.submit({request});
  ASSERT_TRUE(harness.wait_ended(1));
  ASSERT_TRUE(harness.stream(1).failed);
  EXPECT_EQ(harness.stream(1).failed->code, Errc::kInvalidArgument);
  EXPECT_EQ(harness.pool().status().worker_deaths, 0U);
}

}  // namespace
}  // namespace thaw::forkpool

int main(int argc, char** argv) {
  if (argc > 1 && std::string_view(argv[1]) == "worker") return thaw::forkpool::run_worker();
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
