#pragma once

#include <cstddef>
#include <span>

#include "engine/cuda/stream.h"
#include "kvsnap/copy_pipeline.h"

namespace thaw::kvsnap {

/// Copies between device memories by a kernel, which pulls from a peer at the rate of the link
/// wherever the pieces lie. The copy engine needs some microseconds between two of them, as many as
/// a block of 2 MiB takes. For what crosses rarely: it has multiprocessors of its device meanwhile.
class PeerCopy {
 public:
  /// Of one call: what a kernel's parameters can hold.
  static constexpr std::size_t kMostPieces = 128;

  /// Whether enqueue() can take them: aligned to 16 bytes, all wanted, not too many.
  static bool can_copy(std::span<const CopyPiece> copies);
  /// Enqueues all of them at once. The source is mapped by the current device. REQUIRES:
  /// can_copy(). Throws what the launch fails with.
  static void enqueue(std::span<const CopyPiece> copies, cuda::StreamView stream);
};

}  // namespace thaw::kvsnap
