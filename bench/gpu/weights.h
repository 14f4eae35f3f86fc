#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace thaw::bench {

/// Weights on their way to the current GPU, against its copy engine in the same run.

struct WeightOptions {
  std::size_t bytes = std::size_t{16060522496};  ///< of a packed 8B model in bf16
  std::string directory;  ///< a file of `bytes` is made in it and removed again
  int repeats = 3;
};

/// One kind of pinned memory that holds all weights.
struct PinnedWeights {
  std::string pages;  ///< "reserved 2 MiB", "collapsed", "4 KiB"
  double take_ms = 0;  ///< touching the pages by all cores, and joining them
  double pin_ms = 0;  ///< by one call
  double swap_ms = 0;  ///< one copy of all of it to the device: a swap of models
};

struct WeightFigures {
  std::size_t bytes = 0;
  double ceiling_to_device = 0;  ///< bytes a second of a plain pinned copy
  double upload_ms = 0;  ///< from a file in the page cache, pinning included
  double upload_pinning_ms = 0;  ///< of that
  std::vector<PinnedWeights> pinned;  ///< of the kinds that this system gives
};

/// Throws what the device or the file fails with.
WeightFigures measure_weights(const WeightOptions& options);

std::string to_json(const WeightFigures& figures);

}  // namespace thaw::bench
