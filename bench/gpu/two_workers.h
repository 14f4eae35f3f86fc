#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace thaw::bench {

/// A pool of worker processes over two GPUs, from the inside, on a packed 8B image: KV that goes
/// from device to device, and a rank that is killed under load.

struct TwoDeviceOptions {
  std::string binary;  ///< thaw; its worker command is run
  std::string image;  ///< a packed image (*.thawimg) for CUDA
  std::size_t trunk_tokens = 4000;
  int repeats = 7;
  std::string devices = "cuda:0,1";
};

struct MoveFigures {
  std::uint64_t bytes = 0;
  double copy_GB_per_s = 0;  ///< one plain peer copy of as many bytes: the ceiling
  /// As many bytes to pinned memory from the one GPU and from there to the other at the same time.
  double host_copies_ms = 0;
  double peer_ms = 0;  ///< from the call to the trunk in the target's index
  double peer_worst_ms = 0;
  double arena_ms = 0;  ///< both copies at once
  double arena_worst_ms = 0;
  bool same_tokens = false;  ///< what goes on from the copy is what goes on from the original
};

struct RankDeathFigures {
  std::vector<double> back_ms;  ///< kill -9 of a rank to a group that serves, each time
  std::vector<double> token_ms;  ///< to the next token of a stream that ran
  double boot_ms = 0;  ///< the first start, for comparison
  std::vector<std::int64_t> leaked_bytes;  ///< of each device, after all of them
  bool same_tokens = false;  ///< as those of streams that nobody disturbed
};

/// Both throw std::runtime_error, or what the devices fail with.
MoveFigures measure_moves(const TwoDeviceOptions& options);
RankDeathFigures measure_rank_deaths(const TwoDeviceOptions& options);

std::string to_json(const MoveFigures& figures);
std::string to_json(const RankDeathFigures& figures);

}  // namespace thaw::bench
