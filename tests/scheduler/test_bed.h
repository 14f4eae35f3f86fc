#pragma once

#include <map>
#include <memory>
#include <optional>
#include <vector>

#include <gtest/gtest.h>

#include "engine/scheduler/scheduler.h"
#include "tests/base/manual_clock.h"
#include "tests/scheduler/ahead_model.h"
#include "tests/scheduler/fake_model.h"

namespace thaw::scheduler {

/// What the events of a request said; recording them checks their order.
struct Outcome {
  struct Choice {
    std::vector<TokenId> tokens;
    std::optional<FinishReason> finished;
    std::optional<TokenId> stop_token;
    std::uint64_t first_token_step = 0;  ///< steps done before it
    std::uint32_t first_index = 0;
  };
  std::map<std::uint32_t, Choice> choices;
  std::vector<PromptLogprob> prompt;  ///< of its tokens from `first_scored` on
  std::uint32_t first_scored = 0;
  std::optional<Usage> usage;
  std::optional<Error> error;

  bool ended() const { return usage.has_value() || error.has_value(); }
  const std::vector<TokenId>& tokens(std::uint32_t choice = 0) const {
    return choices.at(choice).tokens;
  }
};

/// Whether THAW_TEST_LOOK_AHEAD is set: the same tests run with one step in flight and with two.
bool looks_ahead();

/// A scheduler over the fake model. Every step is followed by the index's integrity check.
class TestBed {
 public:
  struct Options {
    std::size_t num_blocks = 1024;
    int max_positions = 8192;
    SchedulerOptions scheduler;
    bool look_ahead = looks_ahead();
  };

  TestBed() : TestBed(Options{}) {}
  explicit TestBed(const Options& options);
  ~TestBed();

  /// The id of the request; it must be accepted.
  RequestId add(GenerateRequest request);
  Result<void> try_add(GenerateRequest request);
  /// Until `count` more steps are done, or nothing can run. Looking ahead, one more is in flight
  /// then.
  void step(int count = 1);
  /// Until no work is left; fails after `max_steps`.
  void run(int max_steps = 20000);
  /// run(), then every request so far has the tokens that the model gives.
  void run_and_expect_exact();

  Scheduler& scheduler() { return *scheduler_; }
  FakeModel& model() { return *model_; }
  /// REQUIRES: the bed looks ahead.
  const AheadModel& ahead() const { return *ahead_; }
  kv::RadixIndex& index() { return *index_; }
  kv::BlockPool& pool() { return *pool_; }
  ManualClock& clock() { return clock_; }
  const EngineStats& stats() const { return scheduler_->stats(); }
  const Outcome& outcome(RequestId id) const { return outcomes_.at(id); }
  const std::map<RequestId, Outcome>& outcomes() const { return outcomes_; }
  const GenerateRequest& request(RequestId id) const { return requests_.at(id); }
  /// Over all requests that completed: prompt tokens not found in the cache.
  std::uint64_t prefilled_by_usage() const;
  std::size_t max_tokens() const { return max_tokens_; }

 private:
  void record(const GenerateEvent& event);

  ManualClock clock_;
  std::unique_ptr<FakeModel> model_;
  std::unique_ptr<AheadModel> ahead_;  ///< over model_, or null
  std::unique_ptr<kv::BlockPool> pool_;
  std::unique_ptr<kv::RadixIndex> index_;
  std::unique_ptr<Scheduler> scheduler_;
  std::map<RequestId, Outcome> outcomes_;
  std::map<RequestId, GenerateRequest> requests_;
  RequestId next_id_ = 1;
  std::size_t max_tokens_ = 0;
};

/// `count` tokens that nothing else shares: ids below kFakeEos, decided by `name`.
std::vector<TokenId> some_tokens(std::size_t count, std::uint64_t name);
std::vector<TokenId> operator+(std::vector<TokenId> a, const std::vector<TokenId>& b);

/// Greedy, or with a seed at temperature 1, never ended by EOS.
GenerateRequest make_request(std::vector<TokenId> prompt, std::uint32_t max_tokens = 4,
                             std::optional<std::uint64_t> seed = std::nullopt);

}  // namespace thaw::scheduler
