// The pool with real processes that hold no model (fake_worker.cc).

#include <sys/resource.h>

#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/forkpool/fake_tokens.h"
#include "tests/forkpool/pool_harness.h"

namespace thaw::forkpool {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;

constexpr std::uint32_t kEndless = 1 << 30;

TEST(ForkPool, ServesARequestWithSeveralChoices) {
  PoolHarness harness("");
  GenerateRequest request = make_request(1, make_prompt(40, 1), 20);
  request.num_choices = 3;
  harness.submit({request});
  ASSERT_TRUE(harness.wait_ended(1));
  expect_exact(harness, request);
  EXPECT_TRUE(std::holds_alternative<AdmittedEvent>(harness.stream(1).events.front()));
  EXPECT_EQ(harness.worker(0).system_fingerprint, "fake-1");
}

TEST(ForkPool, AStreamGoesOnAfterItsWorkersDeath) {
  PoolHarness harness("*:pace_us=200", PoolHarness::options(2));
  ASSERT_TRUE(harness.wait_ready());
  GenerateRequest killed = make_request(1, make_prompt(40, 1), 2000);
  killed.worker = 0;
  killed.num_choices = 2;
  GenerateRequest untouched = make_request(2, make_prompt(40, 2), 2000);
  untouched.worker = 1;
  harness.submit({killed, untouched});
  ASSERT_TRUE(harness.wait_tokens(1, 10));
  ASSERT_TRUE(harness.wait_tokens(2, 10));
  ASSERT_TRUE(harness.kill_worker(0));
  ASSERT_TRUE(harness.wait_ended(1));
  ASSERT_TRUE(harness.wait_ended(2));
  expect_exact(harness, killed);
  expect_exact(harness, untouched);
  const PoolStatus status = harness.pool().status();
  EXPECT_EQ(status.worker_deaths, 1U);
  EXPECT_EQ(status.requests_retried, 1U);
  EXPECT_EQ(status.requests_resumed, 1U);
  EXPECT_EQ(status.workers[0].generation, 1U);
  EXPECT_EQ(status.workers[1].generation, 0U);
}

TEST(ForkPool, AStreamMovesToAnotherWorker) {
  // The first process of worker 0 dies over the third token, its successors never start.
  PoolHarness harness("0.0:die_at_token=3;0.1:exit_at_boot;0.2:exit_at_boot;0.3:exit_at_boot",
                      PoolHarness::options(2));
  ASSERT_TRUE(harness.wait_ready());
  const GenerateRequest first = make_request(1, make_prompt(100, 1), 50);
  const GenerateRequest second = make_request(2, make_prompt(100, 2), 50);
  harness.submit({first, second});
  ASSERT_TRUE(harness.wait_ended(1));
  ASSERT_TRUE(harness.wait_ended(2));
  expect_exact(harness, first);
  expect_exact(harness, second);
  EXPECT_EQ(harness.pool().status().requests_resumed, 1U);
}

TEST(ForkPool, AWorkerThatDiesOverItsLastTokenLosesNothing) {
  PoolHarness harness("0.0:die_at_token=4");
  const GenerateRequest request = make_request(1, make_prompt(40, 1), 5);
  harness.submit({request});
  ASSERT_TRUE(harness.wait_ended(1));
  expect_exact(harness, request);
}

TEST(ForkPool, GarbageEndsTheProcessAndTheRequestIsRetried) {
  PoolHarness harness("0.0:garbage");
  const GenerateRequest request = make_request(1, make_prompt(40, 1), 5);
  harness.submit({request});
  ASSERT_TRUE(harness.wait_ended(1));
  expect_exact(harness, request);
  const PoolStatus status = harness.pool().status();
  EXPECT_EQ(status.worker_deaths, 1U);
  EXPECT_EQ(status.requests_retried, 1U);
  EXPECT_EQ(status.requests_resumed, 0U);  // nothing had been sent
}

TEST(ForkPool, AGapInTheTokensEndsTheProcess) {
  PoolHarness harness("0.0:gap");
  const GenerateRequest request = make_request(1, make_prompt(40, 1), 8);
  harness.submit({request});
  ASSERT_TRUE(harness.wait_ended(1));
  expect_exact(harness, request);
  EXPECT_EQ(harness.pool().status().worker_deaths, 1U);
}

TEST(ForkPool, TokensSentTwiceArriveOnce) {
  PoolHarness harness("*:twice");
  const GenerateRequest request = make_request(1, make_prompt(40, 1), 8);
  harness.submit({request});
  ASSERT_TRUE(harness.wait_ended(1));
  expect_exact(harness, request);
  EXPECT_EQ(harness.pool().status().worker_deaths, 0U);
}

TEST(ForkPool, OnlyTheRequestThatKillsItsWorkerAloneFails) {
  PoolHarness harness("*:poison=777;*:pace_us=500");
  ASSERT_TRUE(harness.wait_ready());
  std::vector<GenerateRequest> requests;
  for (RequestId id = 1; id <= 4; ++id)
    requests.push_back(make_request(id, make_prompt(40, id), 300));
  GenerateRequest& poison = requests[2];
  poison.prompt[0] = 777;
  harness.submit(requests);
  for (const GenerateRequest& request : requests)
    ASSERT_TRUE(harness.wait_ended(request.id));
  for (const GenerateRequest& request : requests) {
    if (request.id != poison.id) expect_exact(harness, request);
  }
  const auto failed = harness.stream(poison.id);
  ASSERT_TRUE(failed.failed);
  EXPECT_EQ(failed.ends, 1);
  // Nobody shall try it again.
  EXPECT_EQ(failed.failed->code, Errc::kInternal);
  EXPECT_THAT(failed.failed->message, HasSubstr("died 3 times"));
  EXPECT_THAT(failed.failed->message, HasSubstr("exited with status 70"));
  EXPECT_TRUE(harness.wait([&] { return harness.pool().status().worker_deaths == 3; }));
  // Service goes on.
  const GenerateRequest after = make_request(9, make_prompt(40, 9), 5);
  harness.submit({after});
  ASSERT_TRUE(harness.wait_ended(9));
  expect_exact(harness, after);
}

TEST(ForkPool, KillsAreNotTheRequestsFaultUntilThereAreMany) {
  std::string rules;
  for (int generation = 0; generation < 8; ++generation)
    rules += "0." + std::to_string(generation) + ":die_at_submit;";
  PoolHarness harness(rules, PoolHarness::options(1));
  const GenerateRequest request = make_request(1, make_prompt(40, 1), 8);
  harness.submit({request});
  ASSERT_TRUE(harness.wait_ended(1));
  expect_exact(harness, request);
  EXPECT_EQ(harness.pool().status().worker_deaths, 8U);  // four in company, as far as is known
}

TEST(ForkPool, WhoseWorkersAreAlwaysKilledFails) {
  PoolHarness harness("*:die_at_submit", PoolHarness::options(1));
  harness.submit({make_request(1, make_prompt(40, 1), 8)});
  ASSERT_TRUE(harness.wait_ended(1));
  const auto failed = harness.stream(1).failed;
  ASSERT_TRUE(failed);
  EXPECT_EQ(failed->code, Errc::kInternal);
  EXPECT_THAT(failed->message, HasSubstr("died 9 times"));
  EXPECT_TRUE(harness.wait([&] { return harness.pool().status().worker_deaths == 9; }));
}

TEST(ForkPool, ARequestThatGetsFurtherOutlivesItsWorkers) {
  PoolHarness harness(
      "0.0:die_at_token=2;0.1:die_at_token=5;0.2:die_at_token=8;0.3:die_at_token=11",
      PoolHarness::options(1));
  const GenerateRequest request = make_request(1, make_prompt(40, 1), 16);
  harness.submit({request});
  ASSERT_TRUE(harness.wait_ended(1));
  expect_exact(harness, request);
  EXPECT_EQ(harness.pool().status().worker_deaths, 4U);
  EXPECT_EQ(harness.pool().status().requests_resumed, 4U);
}

TEST(ForkPool, WhoIsNotReadyInTimeIsReplaced) {
  PoolOptions options = PoolHarness::options();
  options.boot_deadline = milliseconds(300);
  PoolHarness harness("0.0:never_ready", options);
  const GenerateRequest request = make_request(1, make_prompt(40, 1), 5);
  harness.submit({request});
  ASSERT_TRUE(harness.wait_ended(1));
  expect_exact(harness, request);
  EXPECT_EQ(harness.worker(0).generation, 1U);
}

TEST(ForkPool, RequestsFailWithTheReasonWhenNoWorkerStarts) {
  PoolOptions options = PoolHarness::options(2);
  options.max_boot_failures = 3;
  PoolHarness harness("0:exit_at_boot;1:fatal_at_boot", options);
  harness.submit({make_request(1, make_prompt(40, 1), 5)});
  ASSERT_TRUE(harness.wait_ended(1));
  const auto stream = harness.stream(1);
  ASSERT_TRUE(stream.failed);
  EXPECT_EQ(stream.failed->code, Errc::kUnavailable);
  EXPECT_THAT(stream.failed->message, HasSubstr("no worker starts"));
  harness.submit({make_request(2, make_prompt(40, 1), 5)});
  ASSERT_TRUE(harness.wait_ended(2));
  EXPECT_TRUE(harness.stream(2).failed);
  EXPECT_FALSE(harness.pool().status().ready);
}

TEST(ForkPool, TheReasonIsWhatTheWorkerSaid) {
  PoolOptions options = PoolHarness::options();
  options.max_boot_failures = 1;
  PoolHarness harness("*:fatal_at_boot", options);
  harness.submit({make_request(1, make_prompt(40, 1), 5)});
  ASSERT_TRUE(harness.wait_ended(1));
  EXPECT_THAT(harness.stream(1).failed->message, HasSubstr("the fake refuses to start"));
  // Also for those whose requests do not come as far as the pool.
  EXPECT_TRUE(harness.wait([&] {
    return harness.pool().status().failure.find("the fake refuses to start") != std::string::npos;
  }));
}

/// As long as it lives no descriptor can be opened in this process.
class NoDescriptors {
 public:
  NoDescriptors() {
    ::getrlimit(RLIMIT_NOFILE, &before_);
    const rlimit none{3, before_.rlim_max};
    ::setrlimit(RLIMIT_NOFILE, &none);
  }
  ~NoDescriptors() { ::setrlimit(RLIMIT_NOFILE, &before_); }
  NoDescriptors(const NoDescriptors&) = delete;
  NoDescriptors& operator=(const NoDescriptors&) = delete;

 private:
  rlimit before_{};
};

TEST(ForkPool, AMachineWithoutRoomForAProcessIsWaitedFor) {
  PoolHarness harness("*:pace_us=1000");
  ASSERT_TRUE(harness.wait_ready());
  const GenerateRequest request = make_request(1, make_prompt(64, 1), 100);
  harness.submit({request});
  ASSERT_TRUE(harness.wait_tokens(1, 3));
  {
    const NoDescriptors none;
    ASSERT_TRUE(harness.kill_worker(0));
    // More often than processes may fail to boot.
    ASSERT_TRUE(harness.wait([&] { return harness.pool().status().spawn_failures > 8; }));
    EXPECT_FALSE(harness.stream(1).ended());
  }
  ASSERT_TRUE(harness.wait_ended(1));
  expect_exact(harness, request);
  EXPECT_EQ(harness.pool().status().worker_deaths, 1U);
  EXPECT_GE(harness.worker(0).adopted_blocks, 4U) << "no process has touched them";
}

TEST(ForkPool, AMachineWithoutRoomForAProcessIsNotWaitedForForEver) {
  PoolOptions options = PoolHarness::options();
  options.boot_deadline = milliseconds(3000);
  PoolHarness harness("", options);
  ASSERT_TRUE(harness.wait_ready());
  const NoDescriptors none;
  ASSERT_TRUE(harness.kill_worker(0));
  harness.submit({make_request(1, make_prompt(40, 1), 5)});
  ASSERT_TRUE(harness.wait_ended(1));
  const auto stream = harness.stream(1);
  ASSERT_TRUE(stream.failed);
  EXPECT_EQ(stream.failed->code, Errc::kUnavailable);
  EXPECT_THAT(stream.failed->message, HasSubstr("Too many open files"));
}

TEST(ForkPool, RequestsWaitForAWorkerButNotWithoutBound) {
  PoolOptions options = PoolHarness::options();
  options.max_waiting = 2;
  PoolHarness harness("*:never_ready", options);
  GenerateRequest hurried = make_request(2, make_prompt(40, 2), 5);
  hurried.deadline = milliseconds(50);
  harness.submit(
      {make_request(1, make_prompt(40, 1), 5), hurried, make_request(3, make_prompt(40, 3), 5)});
  ASSERT_TRUE(harness.wait_ended(3));
  EXPECT_EQ(harness.stream(3).failed->code, Errc::kResourceExhausted);
  ASSERT_TRUE(harness.wait_ended(2));
  EXPECT_EQ(harness.stream(2).failed->code, Errc::kDeadlineExceeded);
  EXPECT_FALSE(harness.stream(1).ended());
  harness.pool().cancel(1);
  ASSERT_TRUE(harness.wait_ended(1));
  EXPECT_TRUE(harness.stream(1).completed);
  EXPECT_EQ(harness.stream(1).finished.at(0), FinishReason::kCancelled);
  EXPECT_TRUE(harness.wait([&] { return harness.pool().status().requests_running == 0; }));
}

TEST(ForkPool, MoreThanTheWorkersAndTheQueueTakeIsRefused) {
  PoolOptions options = PoolHarness::options();
  options.max_num_seqs = 2;
  options.max_waiting = 3;
  PoolHarness harness("*:pace_us=100", options);
  ASSERT_TRUE(harness.wait_ready());
  std::vector<GenerateRequest> requests;
  for (RequestId id = 1; id <= 6; ++id)
    requests.push_back(make_request(id, make_prompt(20, id), 50));
  harness.submit(requests);
  for (const GenerateRequest& request : requests)
    ASSERT_TRUE(harness.wait_ended(request.id));
  for (RequestId id = 1; id <= 5; ++id)
    expect_exact(harness, requests[id - 1]);
  EXPECT_EQ(harness.stream(6).failed->code, Errc::kResourceExhausted);
}

TEST(ForkPool, CancelReachesTheWorker) {
  PoolHarness harness("*:pace_us=200");
  const GenerateRequest request = make_request(1, make_prompt(40, 1), kEndless);
  harness.submit({request});
  ASSERT_TRUE(harness.wait_tokens(1, 3));
  harness.pool().cancel(1);
  ASSERT_TRUE(harness.wait_ended(1));
  const auto stream = harness.stream(1);
  EXPECT_EQ(stream.finished.at(0), FinishReason::kCancelled);
  ASSERT_TRUE(stream.completed);
  EXPECT_EQ(stream.completed->generated_tokens, stream.tokens.at(0).size());
  EXPECT_EQ(stream.ends, 1);
  harness.pool().cancel(1);  // it has ended: nothing happens
  harness.pool().cancel(99);
}

TEST(ForkPool, OneChoiceEndsAndTheOthersGoOn) {
  PoolHarness harness("*:pace_us=200");
  GenerateRequest request = make_request(1, make_prompt(40, 1), 300);
  request.num_choices = 2;
  harness.submit({request});
  ASSERT_TRUE(harness.wait_tokens(1, 3));
  harness.pool().end_choice(1, 0);
  harness.pool().end_choice(1, 9);
  harness.pool().end_choice(99, 0);
  ASSERT_TRUE(harness.wait_ended(1));
  const auto stream = harness.stream(1);
  EXPECT_TRUE(stream.in_order);
  EXPECT_EQ(stream.finished.at(0), FinishReason::kCancelled);
  EXPECT_LT(stream.tokens.at(0).size(), 300U);
  EXPECT_EQ(stream.finished.at(1), FinishReason::kLength);
  EXPECT_EQ(stream.tokens.at(1), expected_tokens(request, 1));
  ASSERT_TRUE(stream.completed);
  EXPECT_EQ(stream.completed->generated_tokens, 300U + stream.tokens.at(0).size());
}

TEST(ForkPool, ACancelledRequestEndsWithItsDyingWorker) {
  PoolHarness harness("0.0:pace_us=200;0.0:ignore_cancel");
  harness.submit({make_request(1, make_prompt(40, 1), kEndless)});
  ASSERT_TRUE(harness.wait_tokens(1, 3));
  harness.pool().cancel(1);
  ASSERT_TRUE(harness.kill_worker(0));
  ASSERT_TRUE(harness.wait_ended(1));
  EXPECT_EQ(harness.stream(1).finished.at(0), FinishReason::kCancelled);
  EXPECT_EQ(harness.pool().status().requests_retried, 0U);
}

TEST(ForkPool, AWorkerThatForgetsADeadlineIsNotWaitedFor) {
  PoolHarness harness("*:pace_us=200;*:ignore_cancel");
  GenerateRequest request = make_request(1, make_prompt(40, 1), kEndless);
  request.deadline = milliseconds(20);
  harness.submit({request});
  ASSERT_TRUE(harness.wait_ended(1));
  EXPECT_EQ(harness.stream(1).failed->code, Errc::kDeadlineExceeded);
}

TEST(ForkPool, BadRequestsAreNamed) {
  PoolHarness harness("");
  GenerateRequest elsewhere = make_request(1, make_prompt(40, 1), 5);
  elsewhere.worker = 4;
  GenerateRequest empty = make_request(2, {}, 5);
  harness.submit({elsewhere, empty});
  ASSERT_TRUE(harness.wait_ended(1));
  ASSERT_TRUE(harness.wait_ended(2));
  EXPECT_EQ(harness.stream(1).failed->code, Errc::kInvalidArgument);
  EXPECT_THAT(harness.stream(1).failed->message, HasSubstr("worker 4 does not exist; there are 1"));
  EXPECT_THAT(harness.stream(2).failed->message, HasSubstr("prompt has no token"));
}

TEST(ForkPool, StartRefusesWhatCannotWork) {
  PoolOptions options = PoolHarness::options();
  options.worker_binary = "/nonexistent/thaw";
  const auto pool = ForkPool::start(options, {}, [](const GenerateEvent&) {});
  ASSERT_FALSE(pool);
  EXPECT_THAT(pool.error().message, HasSubstr("/nonexistent/thaw"));
}

TEST(ForkPool, ASuccessorFindsThePublishedBlocks) {
  PoolOptions options = PoolHarness::options();
  options.warm_memory = true;  // changes no contents
  PoolHarness harness("", options);
  const auto prompt = make_prompt(100, 1);
  harness.submit({make_request(1, prompt, 5)});
  ASSERT_TRUE(harness.wait_ended(1));
  EXPECT_EQ(harness.stream(1).completed->cached_tokens, 0U);
  ASSERT_TRUE(harness.kill_worker(0));
  ASSERT_TRUE(harness.wait_ready());
  EXPECT_EQ(harness.worker(0).adopted_blocks, 6U);
  harness.submit({make_request(2, prompt, 5)});
  ASSERT_TRUE(harness.wait_ended(2));
  EXPECT_EQ(harness.stream(2).completed->cached_tokens, 96U);
  // Counters are summed over generations.
  ASSERT_TRUE(harness.wait([&] { return harness.worker(0).stats.tokens_decoded == 10; }));
  EXPECT_EQ(harness.worker(0).stats.tokens_prefilled, 104U);
}

TEST(ForkPool, TransferMovesAPrefixThroughTheArena) {
  PoolHarness harness("", PoolHarness::options(2));
  ASSERT_TRUE(harness.wait_ready());
  GenerateRequest request = make_request(1, make_prompt(100, 1), 5);
  request.worker = 0;
  harness.submit({request});
  ASSERT_TRUE(harness.wait_ended(1));
  auto moved = harness.pool().transfer(request, 0, 1, milliseconds(20000));
  ASSERT_TRUE(moved) << moved.error().to_string();
  EXPECT_EQ(*moved, 96U);
  // And on at once: what was published behind the answer is waited for.
  moved = harness.pool().transfer(request, 1, 0, milliseconds(20000));
  ASSERT_TRUE(moved) << moved.error().to_string();
  EXPECT_EQ(*moved, 96U);
  request.id = 2;
  request.worker = 1;
  harness.submit({request});
  ASSERT_TRUE(harness.wait_ended(2));
  EXPECT_EQ(harness.stream(2).completed->cached_tokens, 96U);
  EXPECT_EQ(harness.worker(1).stats.restores, 1U);
  PoolStatus status = harness.pool().status();
  EXPECT_EQ(status.snapshots, 1U);
  EXPECT_GT(status.arena_used_bytes, 0U);
  // The other way about the snapshot is there already: nothing is written again.
  ASSERT_TRUE(harness.pool().transfer(request, 1, 0, milliseconds(20000)));
  EXPECT_EQ(harness.worker(1).stats.snapshots, 0U);

  request.prompt = make_prompt(100, 2);
  EXPECT_EQ(harness.pool().transfer(request, 0, 1, milliseconds(20000)).error().code,
            Errc::kNotFound);
  EXPECT_EQ(harness.pool().transfer(request, 0, 7, milliseconds(20000)).error().code,
            Errc::kInvalidArgument);
  EXPECT_EQ(harness.pool().transfer(request, 0, 0, milliseconds(20000)).error().code,
            Errc::kInvalidArgument);
}

TEST(ForkPool, ATransferThatFailsLeavesTheWorkersServing) {
  PoolHarness harness("0:damage_snapshots;1:no_snapshots", PoolHarness::options(2));
  ASSERT_TRUE(harness.wait_ready());
  GenerateRequest request = make_request(1, make_prompt(100, 1), 5);
  for (std::uint32_t worker = 0; worker < 2; ++worker) {
    request.id = worker + 1;
    request.worker = worker;
    request.prompt = make_prompt(100, worker);
    harness.submit({request});
    ASSERT_TRUE(harness.wait_ended(request.id));
    const auto moved = harness.pool().transfer(request, worker, 1 - worker, milliseconds(20000));
    ASSERT_FALSE(moved);
    EXPECT_EQ(moved.error().code, Errc::kDataLoss);
    EXPECT_THAT(moved.error().message, HasSubstr(worker == 0 ? "checksum" : "no snapshot"));
  }
  EXPECT_EQ(harness.pool().status().worker_deaths, 0U);
}

TEST(ForkPool, LeasesEndWithTheirHoldersProcess) {
  // Worker 0 never writes, worker 1 never reads; either is killed in the middle.
  for (const bool source_dies : {true, false}) {
    SCOPED_TRACE(source_dies ? "source" : "target");
    PoolHarness harness(source_dies ? "0.0:stall_snapshots" : "1.0:stall_snapshots",
                        PoolHarness::options(2));
    ASSERT_TRUE(harness.wait_ready());
    GenerateRequest request = make_request(1, make_prompt(100, 1), 5);
    request.worker = 0;
    harness.submit({request});
    ASSERT_TRUE(harness.wait_ended(1));
    // Its deadline passes first: who asked is told, the extents stay leased.
    auto moved = harness.pool().transfer(request, 0, 1, milliseconds(50));
    ASSERT_FALSE(moved);
    EXPECT_EQ(moved.error().code, Errc::kDeadlineExceeded);
    EXPECT_GT(harness.pool().status().arena_used_bytes, 0U);
    std::thread killer([&] { ASSERT_TRUE(harness.kill_worker(source_dies ? 0 : 1)); });
    moved = harness.pool().transfer(request, 0, 1, milliseconds(20000));
    killer.join();
    ASSERT_TRUE(harness.wait_ready());
    // Either the kill came first and nothing was begun, or it ended what was.
    EXPECT_TRUE(moved || moved.error().code == Errc::kUnavailable);
    moved = harness.pool().transfer(request, 0, 1, milliseconds(20000));
    ASSERT_TRUE(moved) << moved.error().to_string();
    const PoolStatus status = harness.pool().status();
    EXPECT_EQ(status.snapshots, 1U);
    EXPECT_EQ(status.arena_used_bytes, 4096U);  // one page, the snapshot: nothing stayed leased
  }
}

TEST(ForkPool, AWorkerThatStopsReadingIsReplaced) {
  PoolOptions options = PoolHarness::options();
  options.stall_limit = milliseconds(1500);
  PoolHarness harness("0.0:stop_reading", options);
  ASSERT_TRUE(harness.wait_ready());
  std::vector<GenerateRequest> requests;  // more than a socket holds
  for (RequestId id = 1; id <= 4; ++id)
    requests.push_back(make_request(id, make_prompt(60000, id), 5));
  harness.submit(requests);
  for (const GenerateRequest& request : requests) {
    ASSERT_TRUE(harness.wait_ended(request.id));
    expect_exact(harness, request);
  }
  EXPECT_EQ(harness.pool().status().worker_deaths, 1U);
}

TEST(ForkPool, AWorkerThatSaysNothingIsReplaced) {
  PoolOptions options = PoolHarness::options();
  options.stall_limit = milliseconds(1500);
  PoolHarness harness("0.0:stop_reading", options);
  ASSERT_TRUE(harness.wait_ready());
  const GenerateRequest request = make_request(1, make_prompt(40, 1), 5);
  harness.submit({request});
  ASSERT_TRUE(harness.wait_ended(1));
  expect_exact(harness, request);
  EXPECT_EQ(harness.pool().status().worker_deaths, 1U);
}

TEST(ForkPool, AWorkerThatOwesNothingMayBeSilent) {
  PoolOptions options = PoolHarness::options(2);
  options.stall_limit = milliseconds(1500);
  PoolHarness harness("1:pace_us=2000", options);
  ASSERT_TRUE(harness.wait_ready());
  GenerateRequest slow = make_request(1, make_prompt(40, 1), 1200);  // 2.4 s and more
  slow.worker = 1;
  GenerateRequest quick = make_request(2, make_prompt(40, 2), 2);
  quick.worker = 0;
  harness.submit({slow});
  ASSERT_TRUE(harness.wait_ended(1));
  harness.submit({quick});
  ASSERT_TRUE(harness.wait_ended(2));
  expect_exact(harness, slow);
  expect_exact(harness, quick);
  EXPECT_EQ(harness.pool().status().worker_deaths, 0U);
}

TEST(ForkPool, BranchesSpreadOverACopiedTrunk) {
  PoolOptions options = PoolHarness::options(2);
  options.fork_min_prefix_tokens = 500;
  PoolHarness harness("", options);
  ASSERT_TRUE(harness.wait_ready());
  expect_branches_spread(harness);
}

TEST(ForkPool, ALonePinnedRequestGetsItsPrefixByACopy) {
  PoolOptions options = PoolHarness::options(2);
  options.fork_min_prefix_tokens = 500;
  PoolHarness harness("", options);
  ASSERT_TRUE(harness.wait_ready());
  GenerateRequest request = make_request(1, make_prompt(1024, 1), 2);
  request.worker = 0;
  harness.submit({request});
  ASSERT_TRUE(harness.wait_ended(1));
  request.id = 2;
  request.prompt.push_back(5);
  request.worker = 1;
  harness.submit({request});
  ASSERT_TRUE(harness.wait_ended(2));
  expect_exact(harness, request);
  ASSERT_TRUE(harness.wait([&] { return harness.worker(1).stats.tokens_decoded == 2; }));
  EXPECT_EQ(harness.worker(1).stats.restores, 1U);
  EXPECT_EQ(harness.worker(1).stats.tokens_prefilled, 1U);
}

TEST(ForkPool, ShutdownLetsRunningRequestsFinish) {
  PoolHarness harness("*:pace_us=200", PoolHarness::options(2));
  const GenerateRequest request = make_request(1, make_prompt(40, 1), 100);
  harness.submit({request});
  ASSERT_TRUE(harness.wait_tokens(1, 1));
  EXPECT_TRUE(harness.pool().shutdown(milliseconds(20000)));
  expect_exact(harness, request);
  harness.submit({make_request(2, make_prompt(40, 2), 5)});
  ASSERT_TRUE(harness.wait_ended(2));
  EXPECT_EQ(harness.stream(2).failed->code, Errc::kUnavailable);
  EXPECT_TRUE(harness.pool().status().draining);
  for (const WorkerStatus& worker : harness.pool().status().workers)
    EXPECT_EQ(worker.pid, 0);
}

TEST(ForkPool, ShutdownEndsWhatDoesNotEnd) {
  PoolHarness harness("*:pace_us=200");
  harness.submit({make_request(1, make_prompt(40, 1), kEndless)});
  ASSERT_TRUE(harness.wait_tokens(1, 1));
  EXPECT_FALSE(harness.pool().shutdown(milliseconds(50)));
  EXPECT_EQ(harness.stream(1).failed->code, Errc::kUnavailable);
  EXPECT_EQ(harness.worker(0).pid, 0);
}

TEST(ForkPool, ShutdownKillsAWorkerThatIgnoresIt) {
  PoolHarness harness("*:ignore_shutdown");
  ASSERT_TRUE(harness.wait_ready());
  EXPECT_FALSE(harness.pool().shutdown(milliseconds(100)));
  EXPECT_EQ(harness.worker(0).pid, 0);
}

}  // namespace
}  // namespace thaw::forkpool
