// What workers have in device memory outlives them, by descriptors that the pool keeps. To the pool
// a descriptor is a descriptor: the fake worker's device memory is memory files.

#include <filesystem>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/forkpool/pool_harness.h"

namespace thaw::forkpool {
namespace {

using std::chrono::milliseconds;

PoolOptions device_options(std::uint32_t num_workers) {
  PoolOptions options = PoolHarness::options(num_workers);
  options.device = "cuda";
  return options;
}

// Memory files that this process holds open, by what the fake names them.
std::size_t kept_files() {
  std::size_t count = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code gone;
    const std::string target = std::filesystem::read_symlink(entry.path(), gone).string();
    if (target.starts_with("/memfd:weights (") || target.starts_with("/memfd:kv (")) ++count;
  }
  return count;
}

// The fake counts its uploads in a counter that means something else.
std::uint64_t uploads(PoolHarness& harness, std::uint32_t worker = 0) {
  return harness.worker(worker).stats.restores;
}

TEST(PoolDeviceMemory, ASuccessorFindsWeightsAndBlocksWithoutAnUpload) {
  const std::size_t before = kept_files();
  {
    // Without weights of the harness's own name, so that kept_files() counts the fake's alone.
    PoolHarness harness("", device_options(1));
    ASSERT_TRUE(harness.wait_ready());
    ASSERT_TRUE(harness.wait([&] { return uploads(harness) == 1; }));
    const GenerateRequest first = make_request(1, make_prompt(200, 1), 8);
    harness.submit({first});
    ASSERT_TRUE(harness.wait_ended(1));
    for (std::uint32_t death = 1; death <= 3; ++death) {
      ASSERT_TRUE(harness.kill_worker(0));
      ASSERT_TRUE(harness.wait_ready());
      EXPECT_EQ(harness.worker(0).generation, death);
      EXPECT_EQ(harness.worker(0).adopted_blocks, 12U);  // and its bytes are those it wrote
    }
    GenerateRequest second = first;
    second.id = 2;
    harness.submit({second});
    ASSERT_TRUE(harness.wait_ended(2));
    EXPECT_EQ(harness.stream(2).completed->cached_tokens, 192U);
    EXPECT_EQ(uploads(harness), 1U);
    EXPECT_EQ(kept_files(), before + 3);  // the harness's own, one of weights, one of KV
  }
  EXPECT_EQ(kept_files(), before);
}

// A rank that outlives its group's first process is ended before anything of theirs is used again:
// the fake's ends for nobody, so that the group would never come back otherwise.
TEST(PoolDeviceMemory, AGroupFindsTheMemoryOfAllItsRanks) {
  const std::size_t before = kept_files();
  {
    PoolOptions options = device_options(1);
    options.device = "cuda:0,1";
    options.tensor_parallel = 2;
    PoolHarness harness("", options);
    ASSERT_TRUE(harness.wait_ready());
    ASSERT_TRUE(harness.wait([&] { return uploads(harness) == 2; }));
    const GenerateRequest first = make_request(1, make_prompt(200, 1), 8);
    harness.submit({first});
    ASSERT_TRUE(harness.wait_ended(1));
    for (std::uint32_t death = 1; death <= 3; ++death) {
      ASSERT_TRUE(harness.kill_worker(0));
      ASSERT_TRUE(harness.wait_ready());
      EXPECT_EQ(harness.worker(0).generation, death);
      EXPECT_EQ(harness.worker(0).adopted_blocks, 12U);
    }
    EXPECT_EQ(uploads(harness), 2U);
    EXPECT_EQ(kept_files(), before + 5);  // the harness's own, and two of each rank
    EXPECT_TRUE(harness.pool().shutdown(milliseconds(20000)));
  }
  EXPECT_EQ(kept_files(), before);
}

TEST(PoolDeviceMemory, DamagedWeightsAreUploadedAgain) {
  PoolHarness harness("0.0:damage_weights", device_options(1));
  const GenerateRequest request = make_request(1, make_prompt(100, 1), 8);
  harness.submit({request});
  ASSERT_TRUE(harness.wait_ended(1));
  EXPECT_FALSE(harness.stream(1).failed);
  ASSERT_TRUE(harness.wait([&] { return uploads(harness) == 2; }));
  EXPECT_EQ(harness.pool().status().worker_deaths, 1U);
}

TEST(PoolDeviceMemory, WorkersOfOneDeviceShareWeightsAndNothingElse) {
  PoolHarness harness("", device_options(2));
  ASSERT_TRUE(harness.wait_ready());
  GenerateRequest request = make_request(1, make_prompt(200, 1), 8);
  request.worker = 0;
  harness.submit({request});
  ASSERT_TRUE(harness.wait_ended(1));
  request.id = 2;
  request.worker = 1;
  harness.submit({request});
  ASSERT_TRUE(harness.wait_ended(2));
  EXPECT_EQ(harness.stream(2).completed->cached_tokens, 0U);
  EXPECT_EQ(uploads(harness, 0) + uploads(harness, 1), 1U);
  ASSERT_TRUE(harness.kill_worker(1));
  ASSERT_TRUE(harness.wait_ready());
  EXPECT_EQ(harness.worker(1).adopted_blocks, 12U);
  EXPECT_EQ(uploads(harness, 0) + uploads(harness, 1), 1U);
}

TEST(PoolDeviceMemory, WeightsOfAProcessThatWasNeverReadyAreTriedOnceMore) {
  {
    PoolHarness harness("0.0:die_after_keep", device_options(1));
    ASSERT_TRUE(harness.wait_ready());
    EXPECT_EQ(harness.worker(0).generation, 1U);
    EXPECT_EQ(uploads(harness), 0U);  // the second one found them intact
  }
  PoolHarness harness("0.0:die_after_keep;0.1:exit_at_boot", device_options(1));
  ASSERT_TRUE(harness.wait_ready());
  EXPECT_EQ(harness.worker(0).generation, 2U);
  ASSERT_TRUE(harness.wait([&] { return uploads(harness) == 1; }));
}

// A worker that does not start must not make the others' weights be uploaded beside them.
TEST(PoolDeviceMemory, AFailedStartLeavesTheWeightsThatOthersUse) {
  PoolHarness harness("1.0:exit_at_boot", device_options(2));
  ASSERT_TRUE(harness.wait_ready());
  EXPECT_EQ(harness.worker(1).generation, 1U);
  ASSERT_TRUE(harness.wait([&] { return uploads(harness, 0) == 1; }));
  EXPECT_EQ(uploads(harness, 1), 0U);
}

TEST(PoolDeviceMemory, KeepFramesOutOfPlaceEndTheProcess) {
  for (const std::string rule : {"keep_late", "keep_loose"}) {
    SCOPED_TRACE(rule);
    PoolHarness harness("0.0:" + rule, device_options(1));
    ASSERT_TRUE(harness.wait([&] { return harness.worker(0).generation == 1; }));
    ASSERT_TRUE(harness.wait_ready());
    const GenerateRequest request = make_request(1, make_prompt(40, 1), 8);
    harness.submit({request});
    ASSERT_TRUE(harness.wait_ended(1));
    EXPECT_FALSE(harness.stream(1).failed);
  }
}

TEST(PoolDeviceMemory, ADeviceThatIsNoneIsRefused) {
  PoolOptions options = PoolHarness::options(1);
  options.device = "gpu";
  const auto pool = ForkPool::start(options, {}, [](const GenerateEvent&) {});
  ASSERT_FALSE(pool);
  EXPECT_EQ(pool.error().code, Errc::kInvalidArgument);
  EXPECT_THAT(pool.error().message, testing::HasSubstr("cuda:N"));
}

}  // namespace
}  // namespace thaw::forkpool
