#pragma once

#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "forkpool/fork_pool.h"

namespace thaw::forkpool {

/// A pool of fake workers, and everything it said.
class PoolHarness {
 public:
  struct Stream {
    std::vector<GenerateEvent> events;  ///< in the order they came
    std::map<std::uint32_t, std::vector<TokenId>> tokens;  ///< per choice
    std::map<std::uint32_t, FinishReason> finished;
    std::optional<Usage> completed;
    std::optional<Error> failed;
    int admitted = 0;
    int ends = 0;  ///< completed or failed
    bool in_order = true;  ///< every token had the next index
    bool ended() const { return ends > 0; }
  };

  /// `rules` as in fake_worker.cc.
  static PoolOptions options(std::uint32_t num_workers = 1);
  /// `weights`: what the workers map; the fake needs none.
  explicit PoolHarness(const std::string& rules, PoolOptions options = PoolHarness::options(),
                       WeightsMemory weights = {});
  ~PoolHarness();

  ForkPool& pool() { return *pool_; }
  void submit(std::vector<GenerateRequest> requests);
  Stream stream(RequestId id);
  /// Waits at most 30 s; false then.
  bool wait(const std::function<bool()>& condition);
  bool wait_ended(RequestId id);
  bool wait_tokens(RequestId id, std::size_t count);  ///< of choice 0
  bool wait_ready();  ///< every worker
  WorkerStatus worker(std::uint32_t index) { return pool_->status().workers[index]; }
  /// SIGKILL, and waits until the pool has noticed.
  bool kill_worker(std::uint32_t index);

 private:
  void on_event(GenerateEvent event);

  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<RequestId, Stream> streams_;
  std::unique_ptr<ForkPool> pool_;
};

GenerateRequest make_request(RequestId id, std::vector<TokenId> prompt, std::uint32_t max_tokens);
/// `count` tokens that follow from `seed`.
std::vector<TokenId> make_prompt(std::size_t count, std::uint64_t seed);
/// What the fake answers to choice `choice`.
std::vector<TokenId> expected_tokens(const GenerateRequest& request, std::uint32_t choice = 0);

/// Everything that a served stream must be, whatever happened on its way.
void expect_exact(PoolHarness& harness, const GenerateRequest& request);

/// Of two workers: 32 branches of a trunk that the first one has computed run on both, and the
/// second one got the trunk by one copy.
void expect_branches_spread(PoolHarness& harness);

}  // namespace thaw::forkpool
