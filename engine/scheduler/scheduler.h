#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/base/clock.h"
#include "engine/base/generate.h"
#include "engine/base/pool_status.h"
#include "engine/base/result.h"
#include "engine/kv/radix_index.h"
#include "engine/model/model.h"

namespace thaw::scheduler {

struct SchedulerOptions {
  std::uint32_t max_num_seqs = 64;  ///< sequences decoding at once
  std::uint32_t max_waiting = 1024;  ///< requests queued; one more is refused
  std::uint32_t prefill_chunk_tokens = 128;  ///< prefill rows in one step
  std::size_t num_blocks = 0;
  Hash128 engine_fingerprint;
};

/// Continuous batching over one model: admission, trunks in flight, chunked prefill, decode,
/// preemption. Everything happens inside add/cancel/step on one thread.
///
/// Each choice of a request is a sequence. A sequence whose prompt shares a prefix with a prefill
/// that is not done yet waits, holding no blocks, and attaches once that prefill has passed their
/// common prefix; the prefill goes on while anyone waits for it, whoever began it. A step is all
/// decoding rows plus at most prefill_chunk_tokens of prefill, dealt out by deficit round robin
/// over tenants and round robin over a tenant's prefills.
class Scheduler {
 public:
  using EventSink = std::function<void(GenerateEvent)>;

  Scheduler(const SchedulerOptions& options, model::Model& model, kv::RadixIndex& index,
            kv::BlockPool& pool, const Clock& clock, EventSink sink);
  ~Scheduler();

  /// Queues a request; AdmittedEvent follows at once. Errors: invalid sampling values, a prompt
  /// that with one generated token does not fit the context or the pool, a full queue. Nothing is
  /// queued then.
  Result<void> add(GenerateRequest request);

  /// Ends a request; its choices get FinishedEvent kCancelled and it CompletedEvent. Unknown ids
  /// are ignored (it may have ended already).
  void cancel(RequestId request);

  bool has_work() const;

  /// One launch and collect. An error is the device's: the worker must exit.
  Result<void> step();

  const EngineStats& stats() const;
  /// With no work left: every block is free or in the index, nothing locked. Also the index's own
  /// check.
  Result<void> check_integrity() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace thaw::scheduler
