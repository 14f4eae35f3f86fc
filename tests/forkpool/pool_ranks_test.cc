// Workers of several GPUs behind the pool: what they say is what one GPU says, bit for bit;
// whichever rank is killed, the group comes back and its streams go on; nothing stays. This binary
// is its own worker. With one GPU both ranks share it.

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <string_view>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/cuda/check.h"
#include "forkpool/worker/worker.h"
#include "tests/cuda/gpu_test.h"
#include "tests/forkpool/pool_harness.h"
#include "tests/forkpool/tiny_image.h"
#include "tests/forkpool/trunk_calls.h"

namespace thaw::forkpool {
namespace {

using std::chrono::milliseconds;
using test::tiny_cuda_image;
using testing::HasSubstr;

WeightsMemory weights() {
  return {UniqueFd(::dup(tiny_cuda_image().fd.get())), tiny_cuda_image().size_bytes, {}};
}

PoolOptions options(std::uint32_t ranks) {
  PoolOptions options = PoolHarness::options(1);
  options.worker_binary = std::filesystem::read_symlink("/proc/self/exe");
  options.device = ranks == 1 ? "cuda" : cuda::device_count() > 1 ? "cuda:0,1" : "cuda:0,0";
  options.tensor_parallel = ranks;
  options.threads_per_worker = 2;
  options.kv_bytes = std::size_t{32} << 20;
  options.arena_bytes = std::size_t{16} << 20;
  options.prefill_chunk_tokens = 64;
  options.max_num_seqs = 8;
  options.log_level = "info";
  return options;
}

GenerateRequest request_of(RequestId id, std::uint64_t prompt_seed, std::uint32_t max_tokens,
                           float temperature) {
  GenerateRequest request = make_request(id, make_prompt(150, prompt_seed), max_tokens);
  for (TokenId& token : request.prompt)
    token %= static_cast<TokenId>(tiny_cuda_image().config.vocab_size);
  request.sampling.temperature = temperature;
  request.sampling.seed = id;
  request.sampling.ignore_eos = true;
  return request;
}

/// Standard error of this process and its workers, in a file, while it lives.
class CapturedLog {
 public:
  CapturedLog() : saved_(::fcntl(2, F_DUPFD_CLOEXEC, 20)) {
    const UniqueFd file(::open(path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0600));
    ::dup2(file.get(), 2);
  }
  ~CapturedLog() {
    ::dup2(saved_.get(), 2);
    std::fputs(text().c_str(), stderr);
    std::filesystem::remove(path_);
  }
  CapturedLog(const CapturedLog&) = delete;
  CapturedLog& operator=(const CapturedLog&) = delete;
  std::string text() const {
    std::ifstream file(path_);
    std::stringstream all;
    all << file.rdbuf();
    return all.str();
  }
  /// The process of the second rank, as it was started last.
  pid_t follower() const {
    const std::string all = text();
    constexpr std::string_view kWords = "rank=1 pid=";
    const std::size_t at = all.rfind(kWords);
    return at == std::string::npos ? -1 : std::atoi(all.c_str() + at + kWords.size());
  }

 private:
  std::string path_ = testing::TempDir() + "/thaw-ranks-" + std::to_string(::getpid()) + ".log";
  UniqueFd saved_;
};

std::size_t count(const std::string& text, const std::string& what) {
  std::size_t found = 0;
  for (auto at = text.find(what); at != std::string::npos; at = text.find(what, at + 1))
    ++found;
  return found;
}

using PoolRanksTest = cuda::GpuTest;

std::vector<GenerateRequest> requests() {
  std::vector<GenerateRequest> requests;
  for (RequestId id = 1; id <= 6; ++id)
    requests.push_back(request_of(id, id % 2, 12, id % 3 == 0 ? 0.0F : 0.9F));
  requests[1].sampling.top_k = 40;  // sampled on the host
  return requests;
}

std::vector<std::vector<TokenId>> tokens_of(PoolHarness& harness) {
  std::vector<std::vector<TokenId>> tokens;
  for (const GenerateRequest& request : requests()) {
    EXPECT_TRUE(harness.wait_ended(request.id));
    const auto stream = harness.stream(request.id);
    EXPECT_FALSE(stream.failed) << stream.failed->to_string();
    EXPECT_TRUE(stream.in_order);
    tokens.push_back(stream.tokens.contains(0) ? stream.tokens.at(0) : std::vector<TokenId>{});
  }
  return tokens;
}

TEST_F(PoolRanksTest, TwoRanksSayWhatOneSays) {
  std::vector<std::vector<TokenId>> one;
  std::string fingerprint;
  {
    PoolHarness harness("", options(1), weights());
    ASSERT_TRUE(harness.wait_ready());
    harness.submit(requests());
    one = tokens_of(harness);
    fingerprint = harness.worker(0).system_fingerprint;
  }
  ASSERT_EQ(one[0].size(), 12u);
  PoolHarness harness("", options(2), weights());
  ASSERT_TRUE(harness.wait_ready());
  harness.submit(requests());  // in one batch, on shared trunks
  EXPECT_EQ(tokens_of(harness), one);
  EXPECT_EQ(harness.worker(0).system_fingerprint, fingerprint);
  // One by one, on what is cached now.
  std::vector<std::vector<TokenId>> warm;
  for (GenerateRequest request : requests()) {
    request.id += 100;
    request.sampling.seed = request.id - 100;
    harness.submit({request});
    ASSERT_TRUE(harness.wait_ended(request.id));
    const auto stream = harness.stream(request.id);
    ASSERT_FALSE(stream.failed);
    EXPECT_GE(stream.completed->cached_tokens, 128u);
    warm.push_back(stream.tokens.at(0));
  }
  EXPECT_EQ(warm, one);
  EXPECT_EQ(harness.pool().status().worker_deaths, 0u);
}

TEST_F(PoolRanksTest, WhicheverRankIsKilledTheGroupComesBack) {
  std::size_t free_before = 0;
  {
    const CapturedLog log;
    std::vector<std::vector<TokenId>> undisturbed;
    PoolHarness harness("", options(2), weights());
    ASSERT_TRUE(harness.wait_ready());
    harness.submit(requests());
    undisturbed = tokens_of(harness);
    free_before = cuda::free_device_bytes().value();
    for (const bool first : {false, true}) {
      SCOPED_TRACE(first ? "the first rank" : "the second rank");
      const pid_t leader = harness.worker(0).pid;
      const std::size_t uploads = count(log.text(), "weights uploaded");
      const pid_t follower = log.follower();
      ASSERT_GT(follower, 0);
      GenerateRequest request = request_of(first ? 51 : 50, 0, 30, 0.9F);
      request.sampling.seed = 4;
      harness.submit({request});
      ASSERT_TRUE(harness.wait_tokens(request.id, 4));
      ASSERT_EQ(::kill(first ? leader : follower, SIGKILL), 0);
      const auto killed = std::chrono::steady_clock::now();
      ASSERT_TRUE(harness.wait([&] { return harness.worker(0).pid != leader; }));
      ASSERT_TRUE(harness.wait_ready());
      RecordProperty(first ? "first_rank_back_ms" : "second_rank_back_ms",
                     static_cast<int>(std::chrono::duration_cast<milliseconds>(
                                          std::chrono::steady_clock::now() - killed)
                                          .count()));
      std::printf("back after %lld ms\n",
                  static_cast<long long>(std::chrono::duration_cast<milliseconds>(
                                             std::chrono::steady_clock::now() - killed)
                                             .count()));
      ASSERT_TRUE(harness.wait_ended(request.id));
      const auto stream = harness.stream(request.id);
      ASSERT_FALSE(stream.failed) << stream.failed->to_string();
      EXPECT_TRUE(stream.in_order);
      EXPECT_EQ(stream.tokens.at(0).size(), 30u);
      // No process of the old group is left.
      EXPECT_TRUE(harness.wait([&] { return ::kill(follower, 0) != 0; }));
      EXPECT_TRUE(harness.wait([&] { return ::kill(leader, 0) != 0; }));
      EXPECT_NE(log.follower(), follower);
      // What the ranks had outlives them: nothing is copied, and the trunk is there.
      EXPECT_EQ(count(log.text(), "weights uploaded"), uploads);
      EXPECT_GE(harness.worker(0).adopted_blocks, 9u);
    }
    EXPECT_EQ(harness.stream(50).tokens, harness.stream(51).tokens);
    EXPECT_EQ(harness.pool().status().worker_deaths, 2u);
    std::vector<std::vector<TokenId>> again;
    for (GenerateRequest request : requests()) {
      request.id += 200;
      request.sampling.seed = request.id - 200;
      harness.submit({request});
      ASSERT_TRUE(harness.wait_ended(request.id));
      again.push_back(harness.stream(request.id).tokens.at(0));
    }
    EXPECT_EQ(again, undisturbed);
    // A former group would hold two contexts, hundreds of MiB; drivers round some by the way.
    constexpr std::size_t kSlack = std::size_t{64} << 20;
    EXPECT_TRUE(harness.wait([&] {
      return cuda::free_device_bytes().value() + kSlack >= free_before;
    })) << "a former group's memory is still taken";
  }
}

// Through the arena, where blocks are whole: from the parts of one group into those of another.
TEST_F(PoolRanksTest, ASnapshotGoesOnInAnotherGroup) {
  PoolOptions two = options(2);
  two.num_workers = 2;
  PoolHarness harness("", two, weights());
  ASSERT_TRUE(harness.wait_ready());
  const auto run = [&](RequestId id, std::uint32_t worker) {
    GenerateRequest request = request_of(id, 1, 12, 0.9F);
    request.sampling.seed = 5;
    request.worker = worker;
    harness.submit({request});
    EXPECT_TRUE(harness.wait_ended(id));
    return harness.stream(id);
  };
  const auto cold = run(1, 0);
  ASSERT_FALSE(cold.failed) << cold.failed->to_string();
  const auto moved = harness.pool().transfer(request_of(9, 1, 1, 0.9F), 0, 1, milliseconds(20000));
  ASSERT_TRUE(moved) << moved.error().to_string();
  EXPECT_GE(*moved, 144u);
  const auto restored = run(2, 1);
  ASSERT_FALSE(restored.failed) << restored.failed->to_string();
  EXPECT_EQ(restored.tokens, cold.tokens);
  EXPECT_GE(restored.completed->cached_tokens, 144u);
  EXPECT_GE(harness.worker(1).stats.restores, 1u);
}

// By files, as another server does on another day: what one GPU computed goes on over two, and what
// two computed goes on on one.
TEST_F(PoolRanksTest, ASnapshotGoesOnAtAnyNumberOfRanks) {
  const std::string folder = testing::TempDir() + "/thaw-ranks-kv-" + std::to_string(::getpid());
  std::filesystem::create_directories(folder);
  const GenerateRequest first = request_of(1, 3, 12, 0.9F);
  std::vector<std::vector<TokenId>> answers;
  for (const std::uint32_t ranks : {1U, 2U}) {
    SCOPED_TRACE(std::to_string(ranks) + " ranks");
    const std::string path = folder + "/" + std::to_string(ranks) + ".thawkv";
    {
      PoolHarness harness("", options(ranks), weights());
      ASSERT_TRUE(harness.wait_ready());
      harness.submit({first});
      ASSERT_TRUE(harness.wait_ended(1));
      ASSERT_FALSE(harness.stream(1).failed) << harness.stream(1).failed->to_string();
      answers.push_back(harness.stream(1).tokens.at(0));
      const auto saved = save_trunk(harness.pool(), path, first.prompt);
      ASSERT_TRUE(saved) << saved.error().to_string();
      EXPECT_EQ(saved->num_tokens, 144u);
    }
    PoolHarness harness("", options(3 - ranks), weights());
    ASSERT_TRUE(harness.wait_ready());
    const auto loaded = load_trunk(harness.pool(), path, "pin");
    ASSERT_TRUE(loaded) << loaded.error().to_string();
    GenerateRequest again = first;
    again.id = 2;
    harness.submit({again});
    ASSERT_TRUE(harness.wait_ended(2));
    const auto stream = harness.stream(2);
    ASSERT_FALSE(stream.failed) << stream.failed->to_string();
    answers.push_back(stream.tokens.at(0));
    EXPECT_GE(stream.completed->cached_tokens, 144u);  // not prefilled
  }
  for (const auto& answer : answers)
    EXPECT_EQ(answer, answers[0]);
  std::filesystem::remove_all(folder);
}

TEST_F(PoolRanksTest, WhatCannotBeIsNamed) {
  const CapturedLog log;
  PoolOptions wrong = options(2);
  wrong.device = "cuda:0,77";
  wrong.max_boot_failures = 1;
  PoolHarness harness("", wrong, weights());
  EXPECT_TRUE(harness.wait([&] { return log.text().find("CUDA device 77") != std::string::npos; }));
}

}  // namespace
}  // namespace thaw::forkpool

int main(int argc, char** argv) {
  if (argc > 1 && std::string_view(argv[1]).ends_with("worker"))
    return thaw::forkpool::run_worker();
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
