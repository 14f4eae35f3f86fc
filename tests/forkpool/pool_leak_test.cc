// What a hundred deaths leave behind: nothing.

#include <dirent.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <set>

#include <gtest/gtest.h>

#include "tests/forkpool/pool_harness.h"

namespace thaw::forkpool {
namespace {

std::size_t open_descriptors() {
  std::size_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd"))
    ++count;
  return count;
}

/// Pids of all children, zombies too.
std::set<int> children() {
  std::set<int> pids;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    std::ifstream file(task.path() / "children");
    for (int pid = 0; file >> pid;)
      pids.insert(pid);
  }
  return pids;
}

/// Memory files that this process has mapped.
std::size_t mapped_memfds() {
  std::ifstream maps("/proc/self/maps");
  std::size_t count = 0;
  for (std::string line; std::getline(maps, line);)
    count += line.find("memfd:") != std::string::npos ? 1 : 0;
  return count;
}

TEST(ForkPoolLeaks, AHundredKillsLeaveNothingBehind) {
  const std::size_t descriptors_before = open_descriptors();
  const std::size_t mapped_before = mapped_memfds();
  {
    PoolOptions options = PoolHarness::options(2);
    options.respawn.max = options.respawn.initial;
    PoolHarness harness("*:pace_us=100", options);
    ASSERT_TRUE(harness.wait_ready());
    const std::size_t descriptors_serving = open_descriptors();
    const std::size_t mapped_serving = mapped_memfds();
    for (RequestId id = 1; id <= 100; ++id) {
      SCOPED_TRACE("kill " + std::to_string(id));
      ASSERT_TRUE(harness.wait_ready());
      GenerateRequest request = make_request(id, make_prompt(64, id % 5), 40);
      request.worker = static_cast<std::uint32_t>(id % 2);
      harness.submit({request});
      ASSERT_TRUE(harness.wait_tokens(id, 1 + id % 20));
      ASSERT_TRUE(harness.kill_worker(*request.worker));
      ASSERT_TRUE(harness.wait_ended(id));
      const auto stream = harness.stream(id);
      ASSERT_TRUE(stream.completed);
      ASSERT_TRUE(stream.in_order);
      ASSERT_EQ(stream.tokens.at(0), expected_tokens(request));
    }
    ASSERT_TRUE(harness.wait_ready());
    EXPECT_EQ(harness.pool().status().worker_deaths, 100U);
    EXPECT_EQ(children().size(), 2U);
    EXPECT_EQ(open_descriptors(), descriptors_serving);
    EXPECT_EQ(mapped_memfds(), mapped_serving);
    EXPECT_TRUE(harness.pool().shutdown(std::chrono::milliseconds(20000)));
    EXPECT_TRUE(children().empty());
  }
  EXPECT_EQ(open_descriptors(), descriptors_before);
  EXPECT_EQ(mapped_memfds(), mapped_before);
}

TEST(ForkPoolLeaks, DestructionKillsWhatIsLeft) {
  const std::size_t descriptors_before = open_descriptors();
  {
    PoolHarness harness("*:pace_us=100;1:never_ready", PoolHarness::options(3));
    GenerateRequest request = make_request(1, make_prompt(64, 1), 1 << 30);
    harness.submit({request});
    ASSERT_TRUE(harness.wait_tokens(1, 1));
    EXPECT_EQ(children().size(), 3U);
  }
  EXPECT_TRUE(children().empty());
  EXPECT_EQ(open_descriptors(), descriptors_before);
}

}  // namespace
}  // namespace thaw::forkpool
