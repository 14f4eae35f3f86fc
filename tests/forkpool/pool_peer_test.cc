// KV that goes from worker to worker: straight out of the one's memory into the other's, or through
// the arena while it is still being written there. Whoever dies or refuses in the middle, nothing
// wrong is published, nothing stays held, and where the one way fails the other serves.

#include <signal.h>

#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/forkpool/pool_harness.h"

namespace thaw::forkpool {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;

constexpr std::size_t kPromptTokens = 1000;
constexpr std::uint32_t kWhole = kPromptTokens / kBlockSize * kBlockSize;

PoolOptions peer_options(const std::string& device = "cpu") {
  PoolOptions options = PoolHarness::options(2);
  options.device = device;
  options.peer_copies = true;
  options.fork_min_prefix_tokens = 100000;  // nothing moves that is not asked to
  options.transfer_part_bytes = 4096;  // 16 of the fake's blocks; the prompt has 62
  return options;
}

/// A prefix on worker 0, and where it goes.
class Moved {
 public:
  explicit Moved(const std::string& rules, const PoolOptions& options = peer_options())
      : harness(rules, options) {
    EXPECT_TRUE(harness.wait_ready());
    request.worker = 0;
    harness.submit({request});
    EXPECT_TRUE(harness.wait_ended(1));
  }
  Result<std::uint32_t> move(TransferWay way, milliseconds deadline = milliseconds(20000)) {
    return harness.pool().transfer(request, 0, 1, deadline, way);
  }
  /// The same request on a worker; its cached tokens.
  std::uint64_t ask(std::uint32_t worker) {
    GenerateRequest again = request;
    again.id = ++last_id;
    again.worker = worker;
    harness.submit({again});
    EXPECT_TRUE(harness.wait_ended(again.id));
    const auto stream = harness.stream(again.id);
    EXPECT_FALSE(stream.failed) << stream.failed->to_string();
    return stream.completed ? stream.completed->cached_tokens : 0;
  }
  bool wait_restores(std::uint64_t count) {
    return harness.wait([&] { return harness.worker(1).stats.restores >= count; });
  }
  void expect_arena(std::uint64_t snapshots) {
    const PoolStatus status = harness.pool().status();
    EXPECT_EQ(status.snapshots, snapshots);
    EXPECT_EQ(status.arena_used_bytes, snapshots * 4 * 4096);
  }

  GenerateRequest request = make_request(1, make_prompt(kPromptTokens, 1), 5);
  RequestId last_id = 1;
  PoolHarness harness;
};

TEST(PoolPeer, APrefixGoesStraightFromWorkerToWorker) {
  for (const std::string device : {"cpu", "cuda"}) {
    SCOPED_TRACE(device);
    Moved moved("", peer_options(device));
    for (const TransferWay way : {TransferWay::kPeer, TransferWay::kBest}) {
      const auto tokens = moved.move(way);
      ASSERT_TRUE(tokens) << tokens.error().to_string();
      EXPECT_EQ(*tokens, kWhole);
    }
    EXPECT_EQ(moved.ask(1), kWhole);
    moved.expect_arena(0);
  }
}

TEST(PoolPeer, BranchesSpreadWithoutTheArena) {
  PoolOptions options = peer_options();
  options.arena_bytes = 0;
  options.fork_min_prefix_tokens = 500;
  PoolHarness harness("", options);
  ASSERT_TRUE(harness.wait_ready());
  expect_branches_spread(harness);
}

TEST(PoolPeer, WhereTheStraightWayFailsTheArenaServes) {
  for (const std::string rules : {"0:no_lending", "1:no_borrowing"}) {
    SCOPED_TRACE(rules);
    Moved moved(rules);
    const auto straight = moved.move(TransferWay::kPeer);
    ASSERT_FALSE(straight);
    EXPECT_THAT(straight.error().message, HasSubstr("the fake"));
    const auto tokens = moved.move(TransferWay::kBest);
    ASSERT_TRUE(tokens) << tokens.error().to_string();
    EXPECT_EQ(*tokens, kWhole);
    EXPECT_EQ(moved.ask(1), kWhole);
    moved.expect_arena(1);
    EXPECT_EQ(moved.harness.pool().status().worker_deaths, 0U);
  }
}

TEST(PoolPeer, AnEndThatDiesFailsTheCopyAndHoldsNothing) {
  for (const std::string rules : {"0.0:die_at_lend", "1.0:die_at_borrow", "1.0:die_borrowing"}) {
    SCOPED_TRACE(rules);
    Moved moved(rules);
    const auto tokens = moved.move(TransferWay::kPeer);
    ASSERT_FALSE(tokens);
    EXPECT_EQ(tokens.error().code, Errc::kUnavailable);
    // The copy may fail before the pool has seen the end of the process.
    ASSERT_TRUE(
        moved.harness.wait([&] { return moved.harness.pool().status().worker_deaths == 1; }));
    ASSERT_TRUE(moved.harness.wait_ready());  // a memory that is still held would have no process
    const auto again = moved.move(TransferWay::kPeer);
    ASSERT_TRUE(again) << again.error().to_string();
    EXPECT_EQ(moved.ask(1), kWhole);
    for (const std::uint32_t worker : {0U, 1U}) {
      ASSERT_TRUE(moved.harness.kill_worker(worker));
      ASSERT_TRUE(moved.harness.wait_ready());
    }
    EXPECT_EQ(moved.ask(1), kWhole);  // what was borrowed is the worker's own now
  }
}

// What is being read may not be written: the source's next process waits for the reader.
TEST(PoolPeer, NoSuccessorStartsWhileItsMemoryIsRead) {
  Moved moved("1.0:stall_borrowing");
  const auto late = moved.move(TransferWay::kPeer, milliseconds(50));
  ASSERT_FALSE(late);
  EXPECT_EQ(late.error().code, Errc::kDeadlineExceeded);
  PoolHarness& harness = moved.harness;
  ASSERT_EQ(::kill(harness.worker(0).pid, SIGKILL), 0);
  ASSERT_TRUE(harness.wait([&] { return harness.pool().status().worker_deaths == 1; }));
  // Worker 1 serves meanwhile, and longer than the back-off takes.
  for (int i = 0; i < 20; ++i)
    moved.ask(1);
  EXPECT_FALSE(harness.worker(0).ready);
  EXPECT_EQ(harness.worker(0).pid, 0);
  ASSERT_TRUE(harness.kill_worker(1));
  ASSERT_TRUE(harness.wait_ready());
  EXPECT_EQ(moved.ask(0), kWhole);  // and it has adopted its own
  const auto tokens = moved.move(TransferWay::kPeer);
  ASSERT_TRUE(tokens) << tokens.error().to_string();
}

TEST(PoolPeer, MemoryThatWasGivenUpIsForgotten) {
  // The second process breaks the protocol, so the pool gives up what it kept of the slot.
  Moved moved("0.1:keep_late", peer_options("cuda"));
  ASSERT_TRUE(moved.move(TransferWay::kPeer));
  ASSERT_TRUE(moved.harness.kill_worker(0));
  ASSERT_TRUE(moved.harness.wait([&] { return moved.harness.worker(0).generation == 2; }));
  ASSERT_TRUE(moved.harness.wait_ready());
  moved.request.prompt = make_prompt(kPromptTokens, 2);
  EXPECT_EQ(moved.ask(0), 0U);
  const auto tokens = moved.move(TransferWay::kPeer);  // of other memory
  ASSERT_TRUE(tokens) << tokens.error().to_string();
  EXPECT_EQ(moved.ask(1), kWhole);
}

TEST(PoolPeer, ASnapshotIsRestoredWhileItIsWritten) {
  Moved moved("0:parts");
  const auto tokens = moved.move(TransferWay::kArena);
  ASSERT_TRUE(tokens) << tokens.error().to_string();
  EXPECT_EQ(*tokens, kWhole);
  ASSERT_TRUE(moved.wait_restores(1));
  // The fake counts those that followed in a counter that means something else.
  ASSERT_TRUE(moved.harness.wait([&] { return moved.harness.worker(1).stats.preemptions == 1; }));
  EXPECT_EQ(moved.ask(1), kWhole);
  moved.expect_arena(1);
}

TEST(PoolPeer, ASourceThatDiesInTheMiddleOfItsSnapshotLeavesNoPart) {
  Moved moved("0.0:die_in_parts");
  const auto tokens = moved.move(TransferWay::kArena);
  ASSERT_FALSE(tokens);
  EXPECT_EQ(tokens.error().code, Errc::kUnavailable);
  // The copy may fail before the pool has seen the end of the process.
  ASSERT_TRUE(moved.harness.wait([&] { return moved.harness.pool().status().worker_deaths == 1; }));
  ASSERT_TRUE(moved.harness.wait_ready());
  moved.expect_arena(0);
  EXPECT_EQ(moved.ask(1), 0U);
  moved.request.prompt = make_prompt(kPromptTokens, 3);
  moved.ask(0);
  const auto again = moved.move(TransferWay::kArena);
  ASSERT_TRUE(again) << again.error().to_string();
  EXPECT_EQ(moved.ask(1), kWhole);
  moved.expect_arena(1);
}

TEST(PoolPeer, ADamagedPartIsNoSnapshot) {
  Moved moved("0:parts;0:damage_snapshots");
  const auto tokens = moved.move(TransferWay::kArena);
  ASSERT_FALSE(tokens);
  EXPECT_EQ(tokens.error().code, Errc::kDataLoss);
  EXPECT_EQ(moved.ask(1), 0U);
  EXPECT_EQ(moved.harness.pool().status().worker_deaths, 0U);
}

}  // namespace
}  // namespace thaw::forkpool
