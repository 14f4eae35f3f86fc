#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/base/types.h"

namespace thaw {

/// Counters and gauges of one engine. Counters only grow within a process.
struct EngineStats {
  std::uint64_t steps = 0;
  std::uint64_t tokens_prefilled = 0;  ///< prompt tokens computed: the authority on sharing
  std::uint64_t tokens_reprefilled = 0;  ///< computed again after a preemption or a resume
  std::uint64_t tokens_cached = 0;  ///< prompt tokens not computed thanks to the index
  std::uint64_t tokens_decoded = 0;
  std::uint64_t tokens_discarded = 0;  ///< rows computed for sequences that had ended meanwhile
  std::uint64_t preemptions = 0;
  std::uint64_t evicted_blocks = 0;
  std::uint64_t copied_blocks = 0;  ///< partial blocks copied at a fork's first write
  std::uint64_t trunk_waits = 0;  ///< sequences that waited for a prefill in flight
  std::uint64_t snapshots = 0;  ///< KV snapshots written to the arena
  std::uint64_t restores = 0;  ///< KV snapshots restored from it
  std::uint64_t grammars_compiled = 0;  ///< documents, refused ones too
  std::uint64_t grammar_cache_hits = 0;
  std::uint64_t grammar_compile_us = 0;
  std::uint64_t grammar_masks = 0;  ///< filled
  std::uint64_t grammar_mask_us = 0;  ///< that steps waited for masks
  std::uint64_t blocks_total = 0;  // gauges from here on
  std::uint64_t blocks_free = 0;  ///< free or evictable
  std::uint64_t running = 0;  ///< sequences
  std::uint64_t waiting = 0;

  bool operator==(const EngineStats&) const = default;
};

/// What only grows; the rest is of the present process.
inline constexpr std::uint64_t EngineStats::*kEngineCounters[] = {&EngineStats::steps,
                                                                  &EngineStats::tokens_prefilled,
                                                                  &EngineStats::tokens_reprefilled,
                                                                  &EngineStats::tokens_cached,
                                                                  &EngineStats::tokens_decoded,
                                                                  &EngineStats::tokens_discarded,
                                                                  &EngineStats::preemptions,
                                                                  &EngineStats::evicted_blocks,
                                                                  &EngineStats::copied_blocks,
                                                                  &EngineStats::trunk_waits,
                                                                  &EngineStats::snapshots,
                                                                  &EngineStats::restores,
                                                                  &EngineStats::grammars_compiled,
                                                                  &EngineStats::grammar_cache_hits,
                                                                  &EngineStats::grammar_compile_us,
                                                                  &EngineStats::grammar_masks,
                                                                  &EngineStats::grammar_mask_us};

/// Adds the counters of an engine that went before.
inline void add_counters(EngineStats& stats, const EngineStats& former) {
  for (const auto counter : kEngineCounters)
    stats.*counter += former.*counter;
}

struct WorkerStatus {
  std::uint32_t worker = 0;
  std::string model;  ///< whose weights it has; empty where there is only one
  int pid = 0;
  bool ready = false;
  std::uint32_t generation = 0;  ///< 0 for the first process, one more for each respawn
  std::uint64_t adopted_blocks = 0;  ///< KV blocks its newest process took over from the one before
  EngineStats stats;  ///< counters summed over all generations
  std::string system_fingerprint;  ///< build, device kind and kernel set
};

/// KV kept beside the workers' own: in the arena, in files, or in a store.
struct TierStatus {
  std::uint64_t entries = 0;  ///< trunks there now
  std::uint64_t bytes = 0;  ///< that they take
  std::uint64_t hits = 0;  ///< trunks brought back from there; counters from here on
  std::uint64_t restored_bytes = 0;
  std::uint64_t writes = 0;  ///< trunks written there
  std::uint64_t written_bytes = 0;
  std::uint64_t evictions = 0;  ///< trunks that had to make room
  std::uint64_t refused = 0;  ///< damaged ones
  std::uint64_t failures = 0;  ///< of the place itself: a full disk, a store that does not answer
  std::uint64_t waiting = 0;  ///< gauge: trunks that are to be written there
  /// Gauge: from how many tokens on bringing back beats prefill, by the rates measured so far.
  std::uint64_t crossover_tokens = 0;
};

/// A place for one model at a time (forkpool/model_pool.h).
struct SlotStatus {
  std::uint32_t slot = 0;
  std::string state;  ///< "empty", "swapping", "serving" or "closing"
  std::string model;  ///< whose weights it has, or is being given
  std::uint64_t running = 0;  ///< requests on it
  std::uint64_t swaps = 0;  ///< that succeeded, the one at the start too
  double last_swap_seconds = 0;  ///< from the decision until the model served
  double busy_seconds = 0;  ///< with a request on it
};

struct ModelStatus {
  std::string model;
  std::uint64_t weight_bytes = 0;
  std::uint64_t waiting = 0;  ///< requests without a slot
  std::uint64_t requests = 0;  ///< taken so far
  std::uint64_t loads = 0;  ///< times that it was given a slot
  double load_seconds = 0;  ///< all of them together
  std::uint64_t load_failures = 0;
  std::string failure;  ///< why its requests are refused now; empty: they are not
};

struct PoolStatus {
  bool ready = false;  ///< at least one worker serves
  bool draining = false;
  std::string failure;  ///< why nothing can be served, and requests are refused; empty: it can
  std::vector<WorkerStatus> workers;
  std::uint64_t requests_running = 0;
  std::uint64_t requests_retried = 0;  ///< sent again after a death, nothing lost
  std::uint64_t requests_resumed = 0;  ///< of these, streams that went on from their last token
  std::uint64_t worker_deaths = 0;
  std::uint64_t spawn_failures = 0;  ///< no process could be made: descriptors, memory, processes
  std::uint64_t arena_bytes = 0;
  std::uint64_t arena_used_bytes = 0;
  std::uint64_t snapshots = 0;  ///< published now
  TierStatus arena;  ///< snapshots in shared memory
  TierStatus files;  ///< the spill directory's, of all servers that share it
  /// S3's: its entries are those that this engine can bring back, its bytes all that lies there.
  TierStatus store;
  std::uint64_t tokens_restored = 0;  ///< prompt tokens brought back for requests, not prefilled
  std::uint64_t pins = 0;  ///< of trunks that callers keep
  // Of several models; empty and 0 where there is one.
  std::vector<SlotStatus> slots;
  std::vector<ModelStatus> models;
  double uptime_seconds = 0;
  std::uint64_t requests_suspended = 0;  ///< that gave way to another model and went on later
};

}  // namespace thaw
