#pragma once

#include <list>
#include <map>
#include <memory>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/sampling/sampler.h"
#include "engine/scheduler/deficit_round_robin.h"
#include "engine/scheduler/kv_store.h"
#include "engine/scheduler/masks.h"
#include "engine/scheduler/scheduler.h"
#include "engine/scheduler/sequence.h"
#include "engine/scheduler/trunks.h"

namespace thaw::scheduler {

/// Who does what: queue.cc lets requests in and sequences into the running set, batch.cc plans,
/// launches and collects steps, constrain.cc gives grammars to sequences and masks to steps,
/// output.cc turns what they give into events and ends things, scheduler.cc is the surface.
///
/// A step is planned from what is known when it is launched. What is collected (tokens,
/// kv.computed, states, what the index holds, usage) runs behind what is launched (kv.launched,
/// next_token) by the steps in flight, and only batch.cc looks at the latter.
struct Scheduler::State {
  State(const SchedulerOptions& scheduler_options, model::Model& scheduler_model,
        kv::RadixIndex& index, kv::BlockPool& pool, const Clock& scheduler_clock,
        EventSink event_sink);

  /// Rows of one sequence in a step.
  struct PlannedRows {
    Sequence* sequence = nullptr;  ///< null once it has ended, or lost its blocks, before collect()
    std::uint32_t num_rows = 0;
    std::uint32_t first_scored = 0;  ///< row that `num_scored` begin with; they give their logits
    std::uint32_t num_scored = 0;
    bool samples = false;
    bool is_drawn = false;  ///< on the device; else a row that samples gives its logits

    bool awaits_mask() const { return is_drawn && sequence != nullptr && sequence->constraint; }
  };
  struct Step {
    model::StepHandle handle = 0;
    std::vector<PlannedRows> rows;
    bool awaits_masks = false;
  };

  // queue.cc
  Result<void> check(const GenerateRequest& call) const;
  Result<void> accept(GenerateRequest call);
  void enter(Request& request);
  void enter_queue(Sequence& sequence);
  /// Takes a running or waiting sequence out of everything it is in, its blocks too. Those who
  /// waited for it look for another prefill, or become one.
  void withdraw(Sequence& sequence);
  void preempt(Sequence& sequence);
  Result<void> admit();
  Sequence* next_to_admit() const;
  void start(Sequence& sequence);
  /// How many of the sequence's first tokens it may take from others.
  static std::uint32_t num_shareable(const Sequence& sequence);
  bool wait_for_prefill(Sequence& sequence, bool running_only);

  // batch.cc
  Result<void> run_step();
  bool may_launch() const;
  Result<bool> launch_step();  ///< false: no row can run now
  Result<void> collect_step();
  void plan();
  bool plan_decode_rows();
  void plan_prefill_rows();
  void add_rows(Sequence& sequence, std::uint32_t num_rows);
  void add_to_batch(const PlannedRows& rows);
  bool may_decode(const Sequence& sequence) const;
  bool make_room_for(Sequence& sequence);
  std::uint32_t cut_to_logits(const Sequence& sequence, std::uint32_t num_rows,
                              std::uint32_t& logit_room) const;
  void draw_masked_rows_or_not();
  void account(Sequence& sequence, std::uint32_t num_rows);
  /// Nobody waits any more for what steps in flight compute for this sequence.
  void abandon_rows(const Sequence& sequence);

  // constrain.cc
  Result<void> prepare(Request& request);
  /// Lets requests in whose grammars are compiled.
  void take_prepared();
  MaskJob mask_job(Sequence& sequence) const;
  /// Begins the masks of planned rows whose tokens are all known.
  void start_masks();
  /// Gives a launched step its masks. REQUIRES: no earlier one is in flight.
  Result<void> give_masks(Step& step);
  /// The sequence's mask at its end.
  Result<std::span<const std::uint32_t>> mask_of(Sequence& sequence);

  // output.cc
  void take_rows(const PlannedRows& rows, std::span<const float> logits, TokenId drawn);
  Result<void> score(Request& request, const PlannedRows& rows, std::span<const float> logits);
  void take_drawn(Sequence& sequence, TokenId token);
  void sample(Sequence& sequence, std::span<const float> logits);
  void fork_from(Sequence& leader, std::span<const float> logits);
  void accept_token(Sequence& sequence, sampling::SampledToken sampled);
  void finish(Sequence& sequence, FinishReason reason, std::optional<TokenId> stop_token);
  void cancel(Request& request);
  void end_choice(Request& request, std::uint32_t choice);
  void fail(Request& request, Error error);
  void forget(Request& request);
  void pass_charges_on(Request& request);
  /// Who takes over the charge, and how many tokens it shares.
  std::pair<Request*, std::uint32_t> heir_of(const Sequence& sequence) const;
  void expire_deadlines();

  // scheduler.cc
  /// Ends each call from outside.
  void settle();
  /// Each sequence's launched positions are those computed and those in flight.
  Result<void> check_rows_in_flight() const;

  SchedulerOptions options;
  model::Model& model;
  kv::RadixIndex& index;
  kv::BlockPool& pool;
  const Clock& clock;
  EventSink sink;
  std::uint32_t max_tokens = 0;  ///< of a sequence: the context, or what the pool holds if less

  EngineStats stats;
  KvStore kv;
  Trunks trunks;
  sampling::Sampler sampler;
  std::map<std::int32_t, DeficitRoundRobin> shares;  ///< by priority
  std::unordered_map<RequestId, std::unique_ptr<Request>> requests;
  std::vector<std::unique_ptr<Request>> ended;  ///< kept until nothing can point into them
  std::set<std::pair<Clock::TimePoint, RequestId>> deadlines;
  std::vector<Request*> preparing;  ///< their grammars are being compiled
  std::vector<Sequence*> waiting;
  std::vector<Sequence*> running;
  std::uint64_t next_arrival = 0;
  std::uint64_t next_ticket = 0;

  std::list<Step> in_flight;  ///< oldest first
  std::list<Step> idle;  ///< keep their memory
  std::vector<PlannedRows> planned;
  std::vector<Sequence*> decoding;  ///< scratch of plan_decode_rows()
  std::vector<int> row_numbers;  ///< 0, 1, ...: what logit_rows points into
  std::uint32_t max_scored = 0;  ///< rows of a step that prompt_logprobs take logits of
  MaskFiller masks;
  std::vector<MaskJob> mask_jobs;  ///< scratch
  std::vector<std::span<const std::uint32_t>> given_masks;  ///< scratch
  model::Batch batch;
};

}  // namespace thaw::scheduler
