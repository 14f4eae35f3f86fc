#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "engine/base/clock.h"
#include "engine/base/generate.h"
#include "engine/base/pool_status.h"
#include "engine/base/result.h"
#include "engine/grammar/service.h"
#include "engine/kv/radix_index.h"
#include "engine/model/model.h"

namespace thaw::scheduler {

struct SchedulerOptions {
  std::uint32_t max_num_seqs = 64;  ///< sequences that hold blocks at once
  std::uint32_t max_waiting = 1024;  ///< requests queued; one more is refused
  std::uint32_t prefill_chunk_tokens = 128;  ///< prefill rows in one step
  std::uint32_t max_model_len = 0;  ///< tokens of a sequence, prompt included; 0: the model's
  std::size_t num_blocks = 0;  ///< 0: the pool's; else it must be the same
  Hash128 engine_fingerprint;
  grammar::Service* grammars = nullptr;  ///< must outlive the scheduler; null: there are none
  /// Sees every row of logits that is sampled from; `index` as in TokenEvent. For tests.
  std::function<void(RequestId, std::uint32_t choice, std::uint32_t index, std::span<const float>)>
      on_logits;
};

/// Continuous batching over one model: admission, trunks in flight, chunked prefill, decode,
/// preemption. Everything happens inside add/cancel/step on one thread; the sink is called from
/// there and must not call back.
///
/// Each choice of a request is a sequence. A sequence whose prompt shares a prefix with a prefill
/// that is not done yet waits, holding no blocks, and attaches once that prefill has passed their
/// common prefix; when the request of that prefill ends early, its first waiter goes on from what
/// is computed. A step is all decoding rows plus at most prefill_chunk_tokens of prefill, dealt out
/// by priority, then by deficit round robin over tenants and round robin over a tenant's prefills.
///
/// Where the model draws tokens itself (Model::can_draw), the next step is launched before the one
/// that runs is collected. A sequence that turns out to have stopped has wasted a row then
/// (EngineStats::tokens_discarded); limits of length are known beforehand and waste none. Tokens
/// that are sampled on the host (penalties, top_k, top_p, logprobs, on_logits, the first one of
/// several choices) are awaited before the next step is planned.
///
/// A request with a grammar is admitted once its document is compiled, which is done elsewhere. Its
/// masks are filled beside the forward pass: on another thread while a step runs that gives logits;
/// while the device computes the logits where it draws, whose draw then waits for the masks.
class Scheduler {
 public:
  using EventSink = std::function<void(GenerateEvent)>;

  /// The references must outlive the scheduler. Throws where options and pool disagree. Blocks are
  /// written by the model's launch() and copy_block() alone: whoever must hear of evictions before
  /// a block is overwritten makes sure of it there.
  Scheduler(const SchedulerOptions& options, model::Model& model, kv::RadixIndex& index,
            kv::BlockPool& pool, const Clock& clock, EventSink sink);
  ~Scheduler();

  /// Queues a request; AdmittedEvent follows at once, or when its grammar is compiled (FailedEvent
  /// of kInvalidArgument where it does not compile). Errors: invalid sampling values, a prompt
  /// that with one generated token does not fit the context or the pool, a full queue. Nothing is
  /// queued then.
  Result<void> add(GenerateRequest request);

  /// Ends a request; its choices get FinishedEvent kCancelled and it CompletedEvent. Unknown ids
  /// are ignored (it may have ended already).
  void cancel(RequestId request);

  /// Ends one choice with FinishedEvent kCancelled; the others go on. Ignored for a choice that has
  /// ended or has no token yet, and for unknown ids.
  void end_choice(RequestId request, std::uint32_t choice);

  bool has_work() const;

  /// Launches a step, where rows can run and the model takes one more, then waits for the oldest
  /// one unless yet another could be launched. With max_in_flight() 1 that is one launch and its
  /// collect. Blocks no longer than a step takes. An error is the device's: the worker must exit.
  Result<void> step();

  const EngineStats& stats() const;
  /// While nobody else holds blocks: what is reserved can be had; with no work left, every block is
  /// free or in the index, nothing locked. Rows in flight are those of running sequences. Also the
  /// index's own check.
  Result<void> check_integrity() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace thaw::scheduler
