#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/base/pool_status.h"

namespace thaw::forkpool {

/// Where KV lies besides the workers' own memory, the nearest first.
enum class Tier { kArena, kFile, kStore };

/// What work costs, in seconds. The defaults are those of a small model on two CPU cores; measured
/// values replace them by exponential averages (observe_*). Placement is a pure function of this
/// and of what is alive where.
struct CostModel {
  double prefill_tokens_per_second = 1000;
  double decode_step_seconds = 5e-3;  ///< of a step, whatever its batch
  double decode_seconds_per_sequence = 3e-4;  ///< of each sequence in a step, added to it
  double copy_bytes_per_second = 4e9;  ///< into the arena, and again out of it
  double transfer_seconds = 1e-3;  ///< of a snapshot and its restore, besides the bytes
  /// Both overlap: how often the bytes' time counts. 2 where they share cores and memory.
  double arena_passes = 2;
  double peer_bytes_per_second = 4e9;  ///< from one worker's memory to another's
  double peer_seconds = 3e-4;  ///< of such a copy, besides the bytes
  double file_bytes_per_second = 1e9;  ///< from a file into the arena, checksums included
  double file_seconds = 5e-3;  ///< of opening one, besides the bytes
  double store_bytes_per_second = 1e8;  ///< from a store (S3) into a file
  double store_seconds = 0.1;  ///< of opening an object, besides the bytes
  std::uint32_t fork_min_prefix_tokens =
      500;  ///< shorter trunks never cross workers; 0: rates decide
  std::uint32_t max_decode_tokens = 256;  ///< few answers are as long as their max_tokens
  /// Branches are spread only if that costs less than this part of keeping them together.
  double spread_below = 0.85;

  /// Where measuring starts: the defaults above, or on a GPU those of an 8B model on an H100.
  static CostModel for_device(const std::string& device);

  /// From two reports of one worker, `seconds` apart, during which it was never idle.
  void observe_steps(const EngineStats& before, const EngineStats& now, double seconds);
  /// From a snapshot written and restored.
  void observe_transfer(std::uint64_t bytes, double seconds);
  /// From a copy from worker to worker.
  void observe_peer(std::uint64_t bytes, double seconds);
  /// From a file read.
  void observe_file(std::uint64_t bytes, double seconds);
  /// From an object that became a file.
  void observe_store(std::uint64_t bytes, double seconds);
  /// Nothing was brought from the store for long: what it was found to be is believed half as much,
  /// so that a store that was slow once is tried again.
  void doubt_store();

  double prefill_seconds(std::uint64_t tokens) const {
    return static_cast<double>(tokens) / prefill_tokens_per_second;
  }
  /// From one worker to another, through the arena or straight.
  double arena_move_seconds(double bytes) const {
    return transfer_seconds + arena_passes * bytes / copy_bytes_per_second;
  }
  double peer_move_seconds(double bytes) const {
    return peer_seconds + bytes / peer_bytes_per_second;
  }
  /// From a tier to a worker, through those that lie between.
  double restore_seconds(std::uint64_t bytes, Tier from) const;
  /// The longest that a request waits for what spares it the prefill of `tokens`. A network may be
  /// slower than it was: for a store that is what the prefill takes, for what is here no bound.
  double patience_seconds(std::uint64_t tokens, Tier from) const;
  /// The fewest tokens that are restored sooner than prefilled, by the measured rates; the largest
  /// number where that is never so.
  std::uint32_t crossover_tokens(std::uint64_t kv_bytes_per_token, Tier from) const;
};

/// A worker that can take requests now.
struct WorkerLoad {
  std::uint32_t worker = 0;
  double queued_prefill_tokens = 0;  ///< sent there and not computed yet
  std::uint32_t sequences = 0;  ///< decoding, or about to
  std::uint64_t kv_bytes_per_token = 0;
  bool lends = false;  ///< others can copy straight out of its KV memory
};

/// Requests that stay together: they share more than their group does, or it is only one.
struct Unit {
  double prefill_tokens = 0;  ///< beyond the trunk, each shared token once
  std::vector<double> alive_tokens;  ///< of these, per entry of the loads
  std::uint32_t sequences = 1;
  std::uint32_t decode_tokens = 16;  ///< the most that one sequence may still generate
};

/// Requests under one trunk.
struct Group {
  std::uint32_t trunk_tokens = 0;
  std::vector<std::uint32_t> alive_tokens;  ///< of the trunk, per load; being computed counts
  std::vector<std::uint32_t> published_tokens;  ///< of the trunk, per load; can be copied away
  std::vector<Unit> units;
  std::optional<std::uint32_t> only_load;  ///< index into the loads: its requests run there alone
};

struct Placement {
  struct Transfer {
    std::uint32_t from = 0;  ///< indices into the loads
    std::uint32_t to = 0;
  };
  std::vector<std::uint32_t> unit_load;  ///< index into the loads, per unit
  std::vector<Transfer> transfers;  ///< of the trunk, before units run at `to`
  double cost_seconds = 0;  ///< until the last unit is done, and the prefill and copying on the way
};

/// Places one group: whole on the worker where it costs least, or spread if the model says that the
/// trunk's second prefill or transfer is worth it. A cost is the time until the group is done plus
/// the time that workers spend on prefill and copies for it: being done as soon on another worker,
/// at the price of a trunk prefilled twice, is no gain. REQUIRES: loads is not empty, every
/// per-load vector has its size. Ties go to fewer sequences, then to the earlier entry.
Placement place(const CostModel& model, const std::vector<WorkerLoad>& loads, const Group& group);

}  // namespace thaw::forkpool
