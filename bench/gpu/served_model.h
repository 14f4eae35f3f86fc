#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "bench/gpu/random_checkpoint.h"

namespace thaw::bench {

/// `thaw serve` from the outside, by HTTP, on a random model: how it starts, how a killed worker
/// comes back, fork rounds. Milliseconds by the client's clock, medians.

struct ServedOptions {
  std::string binary;  ///< thaw
  std::string device = "cuda";
  CheckpointShape shape = CheckpointShape::llama_8b();
  /// A directory of its own is made in it and removed again: for the checkpoint and the packed
  /// image, 32 GB of an 8B model. Where both fit the page cache nothing waits for a disk.
  std::string directory;
  /// Not empty: a directory that keeps checkpoint and packed image for the next measurement; what
  /// is not there yet is made.
  std::string prepared;
  std::vector<std::string> arguments;  ///< more of them, for `thaw serve`
  bool measures_starts = true;  ///< and what comes after a kill -9
  std::size_t trunk_tokens = 4001;
  int repeats = 3;
  std::vector<std::size_t> branches = {4, 16};
};

struct ServedRound {
  std::size_t branches = 0;
  double cold_ms = 0;
  double warm_ms = 0;
  double cold_first_token_ms = 0;  ///< of the first branch
  double warm_first_token_ms = 0;
};

struct ServedFigures {
  std::uint64_t weight_bytes = 0;
  double packing_start_ms = 0;  ///< to the first token of the very first start, which packs
  double start_ms = 0;  ///< process start to first token: an image in the page cache
  double start_worst_ms = 0;
  double upload_bytes_per_second = 0;  ///< of the weights then; 0: the worker did not say
  /// From the kill -9 of a worker with a trunk to the first token of a new branch of it.
  double respawn_ms = 0;
  double respawn_worst_ms = 0;
  std::uint64_t respawn_cached_tokens = 0;  ///< of that branch, the fewest: found, not prefilled
  double respawn_boot_ms = 0;  ///< of the worker, from its first frame to ready
  std::vector<ServedRound> rounds;
};

/// Makes what options.prepared shall keep, on the first GPU or the CPU; nothing where it is there.
void prepare_served(ServedOptions options);

/// Throws std::runtime_error with the end of the server's log.
ServedFigures measure_served(const ServedOptions& options);

std::string to_json(const ServedFigures& figures);

}  // namespace thaw::bench
