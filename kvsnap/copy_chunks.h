#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "kvsnap/copy_pipeline.h"

namespace thaw::kvsnap {

/// What a copy engine is given at once, and what one checksum step covers: part of one extent,
/// contiguous in the arena.
struct CopyChunk {
  std::size_t extent = 0;  ///< index into the extents of the copy
  std::span<const std::byte> arena;
  std::vector<CopyPiece> copies;  ///< as few as the chunk's pieces allow; none for unwanted bytes
};

struct ChunkLimits {
  std::size_t max_bytes = std::size_t{4} << 20;
  /// Copies wait in a queue of the driver that holds some thousand, and whoever finds it full is
  /// held up, the thread that computes too.
  std::size_t max_copies = 32;
};

/// Cuts the extents into chunks, in order. Neighbouring pieces whose sources and destinations both
/// follow one another become one copy. REQUIRES: limits are positive.
std::vector<CopyChunk> cut_into_chunks(CopyDirection direction,
                                       const std::vector<ExtentCopy>& extents,
                                       const ChunkLimits& limits);

}  // namespace thaw::kvsnap
