#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "engine/scheduler/kv_store.h"
#include "engine/scheduler/scheduler.h"
#include "kvsnap/copy_pipeline.h"
#include "tests/model/model_harness.h"
#include "tests/scheduler/ahead_model.h"

namespace thaw::scheduler {

/// What one choice generated: its tokens, and a digest of the row of logits behind each.
struct Generated {
  std::vector<TokenId> tokens;
  std::vector<Hash128> logits;
  std::vector<PromptLogprob> scored;  ///< of `tokens`, where asked for
  std::vector<PromptLogprob> prompt;  ///< of the prompt's tokens but the first, where asked for
};

/// (index of the request in its run, choice) -> what it generated.
using Run = std::map<std::pair<std::size_t, std::uint32_t>, Generated>;

struct BedOptions {
  std::size_t num_blocks = 0;  ///< 0: all that the model's memory has room for
  std::uint32_t chunk = 128;
  std::uint32_t max_num_seqs = 64;
  bool look_ahead = false;  ///< two steps in flight, tokens drawn by the model, no logits to see
  grammar::Service* grammars = nullptr;
};

/// A scheduler with an empty cache over a model whose KV memory still holds what ran before.
class ExactBed {
 public:
  ExactBed(model::Model& model, std::size_t blocks_in_memory, const BedOptions& options = {});

  /// All together; every one must complete.
  Run run(const std::vector<GenerateRequest>& requests);
  const EngineStats& stats() const { return scheduler_->stats(); }
  /// Prompt tokens of all runs so far that were found in the cache.
  std::uint64_t cached() const { return scheduler_->stats().tokens_cached; }
  kv::RadixIndex& index() { return index_; }
  kv::BlockPool& pool() { return pool_; }

 private:
  SteadyClock clock_;
  AheadModel ahead_;
  kv::BlockPool pool_;
  kv::RadixIndex index_;
  std::unique_ptr<Scheduler> scheduler_;
  Run run_;
  RequestId first_id_ = 1;
  RequestId next_id_ = 1;
  std::size_t num_completed_ = 0;
};

/// A model with KV memory of its own, on whatever device.
class SuiteModel {
 public:
  virtual ~SuiteModel() = default;
  virtual model::Model& model() = 0;
  /// For model().kv() and an arena that is pinned where the device needs it.
  virtual kvsnap::CopyPipeline& pipeline() = 0;
};

/// Compares every path through the engine with each request alone on an empty cache.
class ExactnessSuite {
 public:
  struct Options {
    std::string model_path;  ///< of a model on the CPU; unused with make_model
    /// Another model over the same weights; `variant` is a number of threads, or what else must not
    /// matter.
    std::function<std::unique_ptr<SuiteModel>(int variant)> make_model;
    std::vector<std::vector<TokenId>> prompts;
    /// Of the prompts, the first ones share a trunk of that many tokens.
    std::size_t num_branches = 8;
    std::size_t trunk_tokens = 0;
    std::uint32_t max_tokens = 64;
    int num_blocks = 512;
    ops::KvDType kv_dtype = ops::KvDType::kBF16;
    std::vector<std::uint32_t> chunks{1, 7, 33, 500};
    bool look_ahead = false;  ///< for all that is compared with the reference
    /// Every other prompt's answer is of this grammar, which must never end.
    std::string grammar;
    std::shared_ptr<grammar::Service> grammars;
  };

  /// Greedy where `seeded` is false, else temperature 1 and a seed for each prompt.
  ExactnessSuite(const Options& options, bool seeded);

  /// Options::look_ahead from now on; the reference stays, which never looks ahead.
  void set_look_ahead(bool look_ahead) { options_.look_ahead = look_ahead; }

  void alone_warm();
  void batched();
  /// The two in one: all together, then each alone on the KV that the batch left.
  void batched_then_alone_warm();
  void other_chunks();
  void choices();
  void shared_trunk();
  void after_eviction();
  void after_preemption();
  void resumed();
  void fed_again();
  /// Log-probabilities of generated tokens against prompt_logprobs of the same tokens.
  void scored_again();
  /// Snapshots of prompt and answer, restored into another KV memory.
  void restored_elsewhere();
  /// Evicted, and restored from a snapshot into the same KV memory.
  void restored_after_eviction();
  void other_thread_counts();

 private:
  GenerateRequest request(std::size_t prompt) const;
  std::vector<GenerateRequest> all_requests() const;
  std::unique_ptr<SuiteModel> make_model(int variant) const;
  /// Copies the whole blocks of the first tokens of `tokens` through an arena. How many tokens.
  std::size_t move_blocks(ExactBed& from, SuiteModel& from_model, ExactBed& to,
                          SuiteModel& to_model, const std::vector<TokenId>& tokens) const;
  ExactBed bed(BedOptions options = {}) const;
  Generated alone(const GenerateRequest& request) const;
  /// Same tokens, and the same logits where they were seen.
  bool matches(const Generated& generated, const Generated& reference) const;
  /// `cut`, or one token less than the prompt's answer has.
  std::ptrdiff_t cut_of(std::size_t prompt, std::size_t cut) const;
  /// `run`[i] equals the reference of prompt i from its token `skip` on.
  void expect_reference(const Run& run, std::size_t skip = 0) const;

  Options options_;
  bool seeded_;
  std::unique_ptr<SuiteModel> model_;
  std::vector<Generated> reference_;  ///< by prompt: alone, cold
};

}  // namespace thaw::scheduler
