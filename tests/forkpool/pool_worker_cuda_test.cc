// The pool with real workers on a GPU: cold, warm, restored in another worker and after a kill -9
// say the same, and what lies on the device outlives the process. This binary is its own worker.

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string_view>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/base/hash.h"
#include "engine/base/log.h"
#include "engine/base/memory_map.h"
#include "engine/cuda/check.h"
#include "engine/cuda/device_info.h"
#include "engine/cuda/vmm.h"
#include "engine/model/model.h"
#include "forkpool/worker/worker.h"
#include "kvsnap/arena.h"
#include "kvsnap/arena_memory.h"
#include "tests/cuda/gpu_test.h"
#include "tests/forkpool/frames.h"
#include "tests/forkpool/pool_harness.h"
#include "tests/forkpool/tiny_image.h"
#include "tests/forkpool/worker_harness.h"

namespace thaw::forkpool {
namespace {

using std::chrono::milliseconds;
using test::DrivenWorker;
using test::tiny_cuda_image;
using testing::HasSubstr;

constexpr std::size_t kPromptTokens = 200;
constexpr std::uint32_t kWholeBlocks = 192;  // tokens of them

PoolOptions gpu_options(std::uint32_t num_workers) {
  PoolOptions options = PoolHarness::options(num_workers);
  options.worker_binary = std::filesystem::read_symlink("/proc/self/exe");
  options.device = "cuda";
  options.threads_per_worker = 4;
  options.kv_bytes = std::size_t{64} << 20;
  options.arena_bytes = std::size_t{32} << 20;
  options.prefill_chunk_tokens = 64;
  options.max_num_seqs = 16;
  options.log_level = "info";
  return options;
}

WeightsMemory weights() {
  return {UniqueFd(::dup(tiny_cuda_image().fd.get())), tiny_cuda_image().size_bytes, {}};
}

GenerateRequest gpu_request(RequestId id, std::uint64_t prompt_seed, std::uint32_t max_tokens,
                            float temperature = 1.0F) {
  GenerateRequest request = make_request(id, make_prompt(kPromptTokens, prompt_seed), max_tokens);
  for (TokenId& token : request.prompt)
    token %= static_cast<TokenId>(tiny_cuda_image().config.vocab_size);
  request.sampling.temperature = temperature;
  request.sampling.seed = 7;
  request.sampling.ignore_eos = true;
  return request;
}

// Standard error of this process and its workers, in a file, while it lives.
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
  std::string text() const {
    std::ifstream file(path_);
    std::stringstream all;
    all << file.rdbuf();
    return all.str();
  }
  std::size_t count(const std::string& what) const {
    const std::string all = text();
    std::size_t found = 0;
    for (auto at = all.find(what); at != std::string::npos; at = all.find(what, at + 1))
      ++found;
    return found;
  }

 private:
  std::string path_ = testing::TempDir() + "/thaw-gpu-test-" + std::to_string(::getpid()) + ".log";
  UniqueFd saved_;
};

using PoolWorkerCudaTest = cuda::GpuTest;

TEST_F(PoolWorkerCudaTest, ColdWarmRestoredAndKilledSayTheSame) {
  const CapturedLog log;
  PoolHarness harness("", gpu_options(2), weights());
  ASSERT_TRUE(harness.wait_ready());
  RequestId id = 0;
  // Tokens, and the cached ones, of a run of the same request on that worker.
  const auto run = [&](std::uint32_t worker, float temperature) {
    GenerateRequest request = gpu_request(++id, 1, 24, temperature);
    request.worker = worker;
    harness.submit({request});
    EXPECT_TRUE(harness.wait_ended(id));
    const auto stream = harness.stream(id);
    EXPECT_FALSE(stream.failed) << stream.failed->to_string();
    return std::pair(stream.tokens, stream.completed ? stream.completed->cached_tokens : 0);
  };
  for (const float temperature : {0.0F, 1.0F}) {
    SCOPED_TRACE(temperature);
    const auto [cold, nothing] = run(0, temperature);
    EXPECT_TRUE(temperature > 0 || nothing == 0U);
    const auto [warm, cached] = run(0, temperature);
    EXPECT_EQ(warm, cold);
    EXPECT_GE(cached, kWholeBlocks);
    const auto moved = harness.pool().transfer(gpu_request(99, 1, 1), 0, 1, milliseconds(20000));
    ASSERT_TRUE(moved) << moved.error().to_string();
    EXPECT_GE(*moved, kWholeBlocks);
    const auto [restored, restored_cached] = run(1, temperature);
    EXPECT_EQ(restored, cold);
    EXPECT_GE(restored_cached, kWholeBlocks);
    for (const std::uint32_t worker : {0U, 1U}) {
      ASSERT_TRUE(harness.kill_worker(worker));
      ASSERT_TRUE(harness.wait_ready());
      EXPECT_GE(harness.worker(worker).adopted_blocks, kWholeBlocks / 16);
      const auto [adopted, adopted_cached] = run(worker, temperature);
      EXPECT_EQ(adopted, cold);
      EXPECT_GE(adopted_cached, kWholeBlocks);
    }
  }
  EXPECT_GE(harness.worker(1).stats.restores, 1U);  // the path meant was taken
  EXPECT_EQ(log.count("weights uploaded"), 1U) << "weights were copied more than once";
  EXPECT_EQ(log.count("weights adopted"), 5U);  // the second worker, and four successors
}

// Straight from worker to worker, on one GPU or between two, and through the arena while it is
// being written there: bit for bit what the first one goes on with.
TEST_F(PoolWorkerCudaTest, ATrunkGoesOnInAnotherWorker) {
  PoolOptions options = gpu_options(2);
  if (cuda::device_count() > 1) options.device = "cuda:0,1";
  options.peer_copies = true;
  options.transfer_part_bytes = std::uint64_t{64} << 10;
  PoolHarness harness("", options, weights());
  ASSERT_TRUE(harness.wait_ready());
  RequestId id = 0;
  for (const TransferWay way : {TransferWay::kPeer, TransferWay::kArena}) {
    SCOPED_TRACE(way == TransferWay::kPeer ? "straight" : "through the arena");
    for (std::uint64_t trunk = 0; trunk < 5; ++trunk) {
      const std::uint64_t seed = 100 + 2 * trunk + (way == TransferWay::kPeer ? 1 : 0);
      GenerateRequest request = gpu_request(++id, seed, 12);
      request.sampling.seed = 3;
      request.worker = 0;
      harness.submit({request});
      ASSERT_TRUE(harness.wait_ended(id));
      const auto cold = harness.stream(id);
      const auto moved = harness.pool().transfer(request, 0, 1, milliseconds(20000), way);
      ASSERT_TRUE(moved) << moved.error().to_string();
      request.id = ++id;
      request.worker = 1;
      harness.submit({request});
      ASSERT_TRUE(harness.wait_ended(id));
      const auto warm = harness.stream(id);
      ASSERT_FALSE(warm.failed) << warm.failed->to_string();
      EXPECT_EQ(warm.tokens, cold.tokens);
      EXPECT_GE(warm.completed->cached_tokens, *moved);
      EXPECT_GT(*moved, 0U);
    }
    EXPECT_EQ(harness.pool().status().snapshots, way == TransferWay::kPeer ? 0U : 5U);
  }
  // The source's next process has the same memory, and lends it again.
  ASSERT_TRUE(harness.kill_worker(0));
  ASSERT_TRUE(harness.wait_ready());
  GenerateRequest request = gpu_request(++id, 7777, 12);
  request.worker = 0;
  harness.submit({request});
  ASSERT_TRUE(harness.wait_ended(id));
  const auto moved =
      harness.pool().transfer(request, 0, 1, milliseconds(20000), TransferWay::kPeer);
  ASSERT_TRUE(moved) << moved.error().to_string();
  EXPECT_EQ(harness.pool().status().worker_deaths, 1U);
}

TEST_F(PoolWorkerCudaTest, KilledStreamsSayWhatUndisturbedOnesDo) {
  PoolHarness harness("", gpu_options(1), weights());
  std::vector<GenerateRequest> requests;
  for (RequestId id = 1; id <= 5; ++id)
    requests.push_back(gpu_request(id, id % 2, 300));
  for (const GenerateRequest& request : requests) {
    harness.submit({request});
    ASSERT_TRUE(harness.wait_ended(request.id));
  }
  std::vector<GenerateRequest> again = requests;
  for (GenerateRequest& request : again)
    request.id += 10;
  harness.submit(again);
  ASSERT_TRUE(harness.wait_tokens(11, 20));
  ASSERT_TRUE(harness.kill_worker(0));
  for (const GenerateRequest& request : requests) {
    ASSERT_TRUE(harness.wait_ended(request.id + 10));
    const auto stream = harness.stream(request.id + 10);
    ASSERT_FALSE(stream.failed) << stream.failed->to_string();
    EXPECT_TRUE(stream.in_order);
    EXPECT_EQ(stream.tokens, harness.stream(request.id).tokens) << request.id;
  }
  EXPECT_EQ(harness.pool().status().worker_deaths, 1U);
}

TEST_F(PoolWorkerCudaTest, ADeathInTheMiddleOfACopyCostsTheCopyAlone) {
  PoolHarness harness("", gpu_options(2), weights());
  for (RequestId round = 0; round < 6; ++round) {
    SCOPED_TRACE(round);
    ASSERT_TRUE(harness.wait_ready());
    const auto victim = static_cast<std::uint32_t>(round % 2);
    GenerateRequest request = gpu_request(10 * round + 1, round, 8);
    request.worker = 0;
    harness.submit({request});
    ASSERT_TRUE(harness.wait_ended(request.id));
    const pid_t pid = harness.worker(victim).pid;
    std::jthread killer([pid] { ::kill(pid, SIGKILL); });
    // Arrived or not, by when the signal came; it ends in any case.
    const auto moved = harness.pool().transfer(request, 0, 1, milliseconds(20000));
    killer.join();
    ASSERT_TRUE(harness.wait([&] { return harness.worker(victim).pid != pid; }));
    ASSERT_TRUE(harness.wait_ready());
    for (const std::uint32_t worker : {0U, 1U}) {
      GenerateRequest again = request;
      again.id += 1 + worker;
      again.worker = worker;
      harness.submit({again});
      ASSERT_TRUE(harness.wait_ended(again.id));
      ASSERT_FALSE(harness.stream(again.id).failed);
      EXPECT_EQ(harness.stream(again.id).tokens, harness.stream(request.id).tokens)
          << (moved ? "moved" : moved.error().to_string());
    }
  }
  EXPECT_EQ(harness.pool().status().worker_deaths, 6U);
}

// A stream decodes all the while: it is neither stopped nor changed.
TEST_F(PoolWorkerCudaTest, AnEvictedTrunkComesBackFromTheArena) {
  // Long enough for a copy to beat the prefill of so small a model.
  constexpr std::size_t kTrunkTokens = 3000;
  PoolOptions options = gpu_options(1);
  options.kv_bytes = 512 * model::kv_block_bytes(tiny_cuda_image().config, ops::KvDType::kBF16);
  options.fork_min_prefix_tokens = 500;
  PoolHarness harness("", options, weights());
  ASSERT_TRUE(harness.wait_ready());
  RequestId id = 100;
  const auto run = [&](std::uint64_t trunk) {
    GenerateRequest request = gpu_request(++id, trunk, 8);
    request.prompt = make_prompt(kTrunkTokens, trunk);
    for (TokenId& token : request.prompt)
      token %= static_cast<TokenId>(tiny_cuda_image().config.vocab_size);
    harness.submit({request});  // 188 blocks of 512
    EXPECT_TRUE(harness.wait_ended(id));
    const auto stream = harness.stream(id);
    EXPECT_FALSE(stream.failed) << stream.failed->to_string();
    return stream.tokens;
  };
  harness.submit({gpu_request(1, 77, 200)});
  ASSERT_TRUE(harness.wait_ended(1));
  const auto undisturbed = harness.stream(1).tokens;
  std::vector<std::map<std::uint32_t, std::vector<TokenId>>> cold;
  constexpr std::uint64_t kTrunks = 5;
  for (std::uint64_t trunk = 0; trunk < kTrunks; ++trunk)
    cold.push_back(run(trunk));
  for (RequestId round = 2; round < 5; ++round) {
    harness.submit({gpu_request(round, 77, 200)});
    for (std::uint64_t trunk = 0; trunk < kTrunks; ++trunk) {
      SCOPED_TRACE(trunk);
      EXPECT_EQ(run(trunk), cold[trunk]);
    }
    ASSERT_TRUE(harness.wait_ended(round));
    EXPECT_EQ(harness.stream(round).tokens, undisturbed);
  }
  const EngineStats stats = harness.worker(0).stats;
  EXPECT_GT(stats.evicted_blocks, 0U);
  EXPECT_GT(stats.snapshots, 0U);
  EXPECT_GT(stats.restores, 0U);
  EXPECT_EQ(harness.pool().status().worker_deaths, 0U);
}

// More sequences than the KV pool has room for: some give way and come back, none is changed.
TEST_F(PoolWorkerCudaTest, AFullKvPoolPreemptsAndChangesNothing) {
  PoolOptions options = gpu_options(1);
  options.kv_bytes = 64 * model::kv_block_bytes(tiny_cuda_image().config, ops::KvDType::kBF16);
  options.arena_bytes = 0;
  PoolHarness harness("", options, weights());
  ASSERT_TRUE(harness.wait_ready());
  std::vector<GenerateRequest> requests;
  for (RequestId id = 1; id <= 6; ++id) {
    requests.push_back(gpu_request(id, id, 200));  // 25 blocks at its end
    harness.submit({requests.back()});
    ASSERT_TRUE(harness.wait_ended(id));
  }
  for (GenerateRequest& request : requests)
    request.id += 10;
  harness.submit(requests);
  for (const GenerateRequest& request : requests) {
    ASSERT_TRUE(harness.wait_ended(request.id));
    const auto stream = harness.stream(request.id);
    ASSERT_FALSE(stream.failed) << stream.failed->to_string();
    EXPECT_EQ(stream.tokens, harness.stream(request.id - 10).tokens) << request.id;
  }
  EXPECT_GT(harness.worker(0).stats.preemptions, 0U);
  EXPECT_EQ(harness.pool().status().worker_deaths, 0U);
}

TEST_F(PoolWorkerCudaTest, AHundredRestoresAndAThousandForksLeakNothing) {
  PoolOptions options = gpu_options(2);
  options.kv_bytes = 64 * model::kv_block_bytes(tiny_cuda_image().config, ops::KvDType::kBF16);
  PoolHarness harness("", options, weights());
  ASSERT_TRUE(harness.wait_ready());
  RequestId id = 0;
  const auto prefill = [&](std::uint64_t seed) {
    GenerateRequest request = gpu_request(++id, seed, 2);
    request.worker = 0;
    harness.submit({request});
    ASSERT_TRUE(harness.wait_ended(id));
    const auto moved = harness.pool().transfer(request, 0, 1, milliseconds(20000));
    ASSERT_TRUE(moved) << moved.error().to_string();
  };
  const auto idle = [&] {
    for (const std::uint32_t worker : {0U, 1U}) {
      const EngineStats stats = harness.worker(worker).stats;
      if (stats.running != 0 || stats.blocks_free != stats.blocks_total) return false;
    }
    return true;
  };
  // Descriptors, and memory that is held in RAM: of both processes together, as tools see them.
  const auto host_use = [&] {
    std::pair<std::size_t, std::size_t> use;
    for (const std::uint32_t worker : {0U, 1U}) {
      const std::string proc = "/proc/" + std::to_string(harness.worker(worker).pid);
      for (const auto& entry : std::filesystem::directory_iterator(proc + "/fd"))
        use.first += entry.is_directory() ? 0 : 1;
      std::ifstream statm(proc + "/statm");
      std::size_t total_pages = 0;
      std::size_t resident_pages = 0;
      statm >> total_pages >> resident_pages;
      use.second += resident_pages * 4096;
    }
    return use;
  };
  for (std::uint64_t seed = 1000; seed < 1010; ++seed)
    ASSERT_NO_FATAL_FAILURE(prefill(seed));  // every kernel and buffer has been used once
  const std::size_t free_before = cuda::free_device_bytes().value();
  const auto [fds_before, resident_before] = host_use();
  for (std::uint64_t seed = 1; seed <= 100; ++seed)
    ASSERT_NO_FATAL_FAILURE(prefill(seed));
  ASSERT_TRUE(harness.wait([&] { return harness.worker(1).stats.restores == 110; }));
  std::map<std::uint32_t, std::vector<TokenId>> expected;
  for (int round = 0; round < 100; ++round) {
    std::vector<GenerateRequest> branches;
    for (int branch = 0; branch < 10; ++branch) {
      branches.push_back(gpu_request(++id, 100, 3));
      branches.back().worker = 1;
    }
    harness.submit(branches);
    for (const GenerateRequest& branch : branches) {
      ASSERT_TRUE(harness.wait_ended(branch.id));
      const auto stream = harness.stream(branch.id);
      ASSERT_FALSE(stream.failed) << stream.failed->to_string();
      if (expected.empty()) expected = stream.tokens;
      ASSERT_EQ(stream.tokens, expected);
      ASSERT_GE(stream.completed->cached_tokens, kWholeBlocks);
    }
  }
  EXPECT_TRUE(harness.wait(idle));
  EXPECT_EQ(cuda::free_device_bytes().value(), free_before);
  const auto [fds, resident] = host_use();
  EXPECT_EQ(fds, fds_before);
  EXPECT_LT(resident, resident_before + (std::size_t{16} << 20));
  EXPECT_EQ(harness.pool().status().worker_deaths, 0U);
}

// The pool's half of the protocol in the test's hands.
class DrivenCudaWorkerTest : public cuda::GpuTest {
 protected:
  static InitFrame init() {
    InitFrame frame;
    frame.device = "cuda:0";
    frame.num_threads = 2;
    frame.kv_bytes = std::size_t{32} << 20;
    frame.max_num_seqs = 8;
    frame.max_waiting = 64;
    frame.prefill_chunk_tokens = 64;
    return frame;
  }
  DrivenWorker::Memory memory() const {
    return {tiny_cuda_image().fd.get(), nothing_.get(), nothing_.get()};
  }
  static std::vector<TokenId> tokens_of(DrivenWorker& worker, RequestId id) {
    const auto outcome = worker.run(gpu_request(id, 3, 16));
    EXPECT_FALSE(outcome.error) << outcome.error->to_string();
    return outcome.tokens;
  }

  UniqueFd nothing_ = create_memfd("nothing", 0).value();
};

TEST_F(DrivenCudaWorkerTest, WeightsThatWereWrittenIntoAreUploadedAgain) {
  const CapturedLog log;
  DeviceMemory kept;
  std::vector<TokenId> expected;
  {
    DrivenWorker worker(memory(), init());
    kept = worker.await<KeepFrame>().value().memory;
    ASSERT_TRUE(worker.await<ReadyFrame>());
    EXPECT_GE(kept.weights_bytes, tiny_cuda_image().size_bytes);
    EXPECT_EQ(kept.kv_bytes, init().kv_bytes);
    EXPECT_THAT(kept.device, HasSubstr("GPU-"));
    EXPECT_EQ(kept.image, tiny_cuda_image().digest);
    expected = tokens_of(worker, 1);
    worker.kill();
  }
  const auto serve_from_kept = [&](const std::string& adopted_or_uploaded) {
    const std::size_t before = log.count(adopted_or_uploaded);
    DrivenWorker worker(memory());
    worker.send(init());
    worker.send(InheritFrame{kept});
    worker.send(AdoptFrame{});
    EXPECT_EQ(tokens_of(worker, 2), expected);
    EXPECT_EQ(log.count(adopted_or_uploaded), before + 1);
    worker.kill();
  };
  serve_from_kept("weights adopted");
  {
    const auto damaged =
        cuda::VmmAllocation::import(0, kept.weights->get(), kept.weights_bytes).value();
    cuda::check(cudaMemset(damaged.data() + tiny_cuda_image().size_bytes / 2, 0x11, 3));
    cuda::check(cudaDeviceSynchronize());
  }
  serve_from_kept("kept weights are damaged");
  serve_from_kept("weights adopted");
}

TEST_F(DrivenCudaWorkerTest, AnotherImageIsNotTakenFromKeptWeights) {
  DeviceMemory kept;
  {
    DrivenWorker worker(memory(), init());
    kept = worker.await<KeepFrame>().value().memory;
    worker.kill();
  }
  kept.image.bytes[0] ^= 1;
  DrivenWorker worker(memory());
  worker.send(init());
  worker.send(InheritFrame{kept});
  worker.send(AdoptFrame{});
  const auto fresh = worker.await<KeepFrame>();
  ASSERT_TRUE(fresh);
  EXPECT_NE(fresh->memory.weights, nullptr);
  EXPECT_EQ(fresh->memory.kv, nullptr);  // that was taken over
  EXPECT_FALSE(tokens_of(worker, 1).empty());
}

// Two workers of one device and an arena between them: what is damaged, or not what it says it is,
// is refused, costs no block, and both serve on.
TEST_F(DrivenCudaWorkerTest, WhatCannotBeBelievedIsRefusedAndTheWorkersServeOn) {
  constexpr std::size_t kTokens = 160;
  auto arena = std::move(kvsnap::Arena::create(std::size_t{32} << 20)).value();
  const DrivenWorker::Memory memory{tiny_cuda_image().fd.get(), nothing_.get(), arena.fd()};
  DrivenWorker a(memory, init());
  DrivenWorker b(memory, init());
  const ReadyFrame ready = a.await<ReadyFrame>().value();
  ASSERT_TRUE(b.await<ReadyFrame>());
  const std::vector<TokenId> expected = tokens_of(a, 1);
  const auto lease = arena.lease_for_writing({}, kTokens / kBlockSize, ready.block_bytes).value();
  kvsnap::Manifest good;
  good.cache_root = make_cache_root(ready.engine_fingerprint, "", "", "");
  good.kv_layout = ready.kv_layout;
  good.block_size = kBlockSize;
  good.block_bytes = ready.block_bytes;
  good.token_ids = gpu_request(1, 3, 16).prompt;
  good.token_ids.resize(kTokens);
  good.extents = lease.extents;
  const auto snapshot = [&](const kvsnap::Manifest& manifest) {
    a.send(SnapshotFrame{7, manifest});
    return a.await<SnapshotDoneFrame>().value();
  };
  const auto restore_error = [&](const kvsnap::Manifest& manifest) {
    b.send(RestoreFrame{8, manifest});
    return b.await<RestoreDoneFrame>().value().error;
  };
  kvsnap::Manifest bad = good;
  bad.cache_root.bytes[0] ^= 1;  // of other weights, or another kernel set
  EXPECT_THAT(snapshot(bad).error, HasSubstr("0 tokens is alive"));
  const SnapshotDoneFrame written = snapshot(good);
  ASSERT_EQ(written.error, "");
  good = with_checksums(good, written);

  const auto view = std::move(kvsnap::ArenaView::map(arena.fd())).value();
  const auto bytes = view.bytes(good.extents[0]);
  for (const std::size_t at : {std::size_t{0}, bytes.size() / 2, bytes.size() - 1}) {
    bytes[at] ^= std::byte{4};
    EXPECT_THAT(restore_error(good), HasSubstr("CRC32C"));
    bytes[at] ^= std::byte{4};
  }
  bad = good;
  bad.kv_layout = "f32 of another kernel set";
  EXPECT_THAT(restore_error(bad), HasSubstr("KV layout"));
  bad = good;
  bad.extents[0].offset = std::uint64_t{32} << 20;
  EXPECT_THAT(restore_error(bad), HasSubstr("outside the arena"));
  bad = good;
  bad.token_ids.resize(kTokens - kBlockSize);
  EXPECT_THAT(restore_error(bad), HasSubstr("blocks of its tokens"));
  EXPECT_EQ(b.stats().restores, 0U);
  EXPECT_TRUE(b.ledger().blocks.empty());

  EXPECT_EQ(tokens_of(b, 2), expected);  // prefilled
  EXPECT_EQ(restore_error(good), "");  // and all of it is alive by now
  EXPECT_EQ(tokens_of(b, 3), expected);
  EXPECT_EQ(tokens_of(a, 4), expected);
  EXPECT_EQ(b.stats().blocks_free, b.stats().blocks_total);
}

TEST_F(DrivenCudaWorkerTest, WhatDoesNotFitIsRefusedWithItsNumbers) {
  const auto fatal = [&](const InitFrame& frame) -> std::string {
    DrivenWorker worker(memory(), frame);
    const auto error = worker.await<FatalFrame>();
    return error ? error->error.to_string() : "nothing";
  };
  InitFrame huge = init();
  huge.kv_bytes = std::uint64_t{1} << 50;
  EXPECT_THAT(fatal(huge), HasSubstr("resource_exhausted"));
  EXPECT_THAT(fatal(huge), HasSubstr("a KV pool of 1073741824 MiB"));
  EXPECT_THAT(fatal(huge), HasSubstr("are free"));
  InitFrame elsewhere = init();
  elsewhere.device = "cuda:77";
  EXPECT_THAT(fatal(elsewhere), HasSubstr("CUDA device 77"));
  InitFrame wide = init();
  wide.kv_dtype = "f32";
  EXPECT_THAT(fatal(wide), HasSubstr("its kernels use bf16"));
}

TEST_F(DrivenCudaWorkerTest, WithoutANumberTheKvTakesWhatIsFree) {
  InitFrame frame = init();
  frame.kv_bytes = 0;
  const std::size_t free_before = cuda::free_device_bytes().value();
  DrivenWorker worker(memory(), frame);
  const auto kept = worker.await<KeepFrame>().value().memory;
  EXPECT_GT(kept.kv_bytes, free_before / 2);
  EXPECT_LT(kept.kv_bytes, free_before);
  EXPECT_FALSE(tokens_of(worker, 1).empty());
}

}  // namespace
}  // namespace thaw::forkpool

int main(int argc, char** argv) {
  if (argc > 1 && std::string_view(argv[1]).ends_with("worker"))
    return thaw::forkpool::run_worker();
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
