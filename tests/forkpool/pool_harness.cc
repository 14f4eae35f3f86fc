#include "tests/forkpool/pool_harness.h"

#include <signal.h>

#include <cstdlib>
#include <random>
#include <utility>

#include <gtest/gtest.h>

#include "engine/base/log.h"
#include "engine/base/memory_map.h"
#include "tests/forkpool/fake_tokens.h"

namespace thaw::forkpool {
namespace {

constexpr std::chrono::seconds kPatience{30};

}  // namespace

PoolOptions PoolHarness::options(std::uint32_t num_workers) {
  PoolOptions options;
  options.worker_binary = std::string(THAW_BINARY_DIR) + "/bin/thaw_fake_worker";
  options.num_workers = num_workers;
  options.kv_bytes = 1 << 20;
  options.arena_bytes = 1 << 20;
  options.peer_copies = false;  // tests of the arena say nothing of it
  options.respawn = {.initial = std::chrono::milliseconds(1),
                     .max = std::chrono::milliseconds(20),
                     .healthy_after = std::chrono::milliseconds(0)};
  return options;
}

PoolHarness::PoolHarness(const std::string& rules, PoolOptions options, WeightsMemory weights) {
  set_log_level(std::getenv("THAW_TEST_LOG") == nullptr ? "off" : "debug");
  ::setenv("THAW_FAKE", rules.c_str(), 1);
  if (!weights.fd) weights = {create_memfd("weights", 4096).value(), 4096, nullptr};
  pool_ = ForkPool::start(std::move(options), std::move(weights), [this](GenerateEvent event) {
            on_event(std::move(event));
          }).value();
}

PoolHarness::~PoolHarness() = default;

void PoolHarness::on_event(GenerateEvent event) {
  {
    const std::scoped_lock lock(mutex_);
    Stream& stream = streams_[event_request(event)];
    if (std::holds_alternative<AdmittedEvent>(event)) ++stream.admitted;
    if (const auto* token = std::get_if<TokenEvent>(&event)) {
      auto& tokens = stream.tokens[token->choice];
      stream.in_order = stream.in_order && token->index == tokens.size();
      tokens.push_back(token->token);
    }
    if (const auto* finished = std::get_if<FinishedEvent>(&event)) {
      stream.in_order = stream.in_order && !stream.finished.contains(finished->choice);
      stream.finished[finished->choice] = finished->reason;
    }
    if (const auto* completed = std::get_if<CompletedEvent>(&event)) {
      stream.completed = completed->usage;
      ++stream.ends;
    }
    if (const auto* failed = std::get_if<FailedEvent>(&event)) {
      stream.failed = failed->error;
      ++stream.ends;
    }
    stream.events.push_back(std::move(event));
  }
  changed_.notify_all();
}

void PoolHarness::submit(std::vector<GenerateRequest> requests) {
  ForkPlan plan;
  for (GenerateRequest& request : requests)
    plan.requests.push_back({std::move(request), -1});
  pool_->submit(std::move(plan));
}

PoolHarness::Stream PoolHarness::stream(RequestId id) {
  const std::scoped_lock lock(mutex_);
  return streams_[id];
}

bool PoolHarness::wait(const std::function<bool()>& condition) {
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  while (!condition()) {
    std::unique_lock lock(mutex_);
    // Status has no notification of its own: look again after a moment.
    changed_.wait_for(lock, std::chrono::milliseconds(1));
    if (std::chrono::steady_clock::now() > deadline) return false;
  }
  return true;
}

bool PoolHarness::wait_ended(RequestId id) {
  return wait([&] {
    const std::scoped_lock lock(mutex_);
    return streams_[id].ended();
  });
}

bool PoolHarness::wait_tokens(RequestId id, std::size_t count) {
  return wait([&] {
    const std::scoped_lock lock(mutex_);
    return streams_[id].tokens[0].size() >= count || streams_[id].ended();
  });
}

bool PoolHarness::wait_ready() {
  return wait([&] {
    for (const WorkerStatus& worker : pool_->status().workers) {
      if (!worker.ready) return false;
    }
    return true;
  });
}

bool PoolHarness::kill_worker(std::uint32_t index) {
  const WorkerStatus before = worker(index);
  if (!before.ready || ::kill(before.pid, SIGKILL) != 0) return false;
  return wait([&] {
    const WorkerStatus now = worker(index);
    return now.generation > before.generation || now.pid == 0;
  });
}

GenerateRequest make_request(RequestId id, std::vector<TokenId> prompt, std::uint32_t max_tokens) {
  GenerateRequest request;
  request.id = id;
  request.prompt = std::move(prompt);
  request.sampling.max_tokens = max_tokens;
  request.sampling.seed = id;
  return request;
}

std::vector<TokenId> make_prompt(std::size_t count, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<TokenId> prompt(count);
  for (TokenId& token : prompt)
    token = static_cast<TokenId>(1000 + random() % 40000);
  return prompt;
}

std::vector<TokenId> expected_tokens(const GenerateRequest& request, std::uint32_t choice) {
  std::vector<TokenId> tokens;
  for (std::uint32_t i = 0; i < request.sampling.max_tokens; ++i)
    tokens.push_back(fake_token(request.prompt, request.sampling.seed, choice, i));
  return tokens;
}

void expect_exact(PoolHarness& harness, const GenerateRequest& request) {
  const auto stream = harness.stream(request.id);
  SCOPED_TRACE("request " + std::to_string(request.id));
  ASSERT_FALSE(stream.failed) << stream.failed->to_string();
  EXPECT_TRUE(stream.in_order);
  EXPECT_EQ(stream.admitted, 1);
  EXPECT_EQ(stream.ends, 1);
  EXPECT_EQ(stream.tokens.size(), request.num_choices);
  for (std::uint32_t choice = 0; choice < request.num_choices; ++choice) {
    EXPECT_EQ(stream.tokens.at(choice), expected_tokens(request, choice));
    EXPECT_EQ(stream.finished.at(choice), FinishReason::kLength);
  }
  ASSERT_TRUE(stream.completed);
  EXPECT_EQ(stream.completed->prompt_tokens, request.prompt.size());
  EXPECT_EQ(stream.completed->generated_tokens, request.num_choices * request.sampling.max_tokens);
  EXPECT_TRUE(std::holds_alternative<CompletedEvent>(stream.events.back()));
}

void expect_branches_spread(PoolHarness& harness) {
  const auto trunk = make_prompt(1024, 1);
  GenerateRequest primer = make_request(1, trunk, 2);
  primer.worker = 0;
  harness.submit({primer});
  ASSERT_TRUE(harness.wait_ended(1));
  std::vector<GenerateRequest> branches;
  for (RequestId id = 2; id < 34; ++id) {
    branches.push_back(make_request(id, trunk, 256));
    branches.back().prompt.push_back(static_cast<TokenId>(id));
  }
  harness.submit(branches);
  for (const GenerateRequest& branch : branches)
    ASSERT_TRUE(harness.wait_ended(branch.id));
  for (const GenerateRequest& branch : branches)
    expect_exact(harness, branch);
  ASSERT_TRUE(harness.wait([&] {
    return harness.worker(0).stats.tokens_decoded + harness.worker(1).stats.tokens_decoded ==
           2 + 32 * 256;
  }));
  EXPECT_EQ(harness.worker(1).stats.restores, 1U);
  // The trunk was prefilled once, by the primer; each branch has its own last tokens.
  EXPECT_EQ(harness.worker(0).stats.tokens_prefilled + harness.worker(1).stats.tokens_prefilled,
            1024U + 32U);
}

}  // namespace thaw::forkpool
