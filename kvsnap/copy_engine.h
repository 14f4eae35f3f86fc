#pragma once

#include <cstddef>
#include <memory>
#include <span>

#include "engine/base/result.h"
#include "kvsnap/copy_pipeline.h"

namespace thaw::kvsnap {

/// A device's copy engine, as OverlappedPipeline drives it: it works while its caller does not
/// wait. fence() is called by the thread that computes, everything else by the pipeline's own.
class CopyEngine {
 public:
  /// A point in the device's compute work.
  class Fence {
   public:
    virtual ~Fence() = default;
  };

  virtual ~CopyEngine() = default;
  /// Chunks that may be in flight at once; slots are 0 .. num_slots() - 1.
  virtual std::size_t num_slots() const = 0;
  /// Marks what the device has been given to compute so far. Waits for nothing.
  virtual Result<std::unique_ptr<Fence>> fence() = 0;
  /// Called once by the pipeline's thread before anything else.
  virtual Result<void> attach_thread() = 0;
  /// Later copies begin when the device has reached the fence.
  virtual Result<void> wait_for(const Fence& fence) = 0;
  /// Begins to wake the way to a peer's memory, which rests where nothing has gone over it for some
  /// milliseconds: `memory` is read until awake(), unless that fails. Waits for nothing.
  virtual Result<void> wake(const std::byte* /*memory*/) { return {}; }
  /// Whether what wake() began last is done. Errors: the device's.
  virtual Result<bool> awake() { return true; }
  /// Starts the copies of one chunk; waits for nothing. REQUIRES: the slot is not in flight.
  virtual Result<void> start(std::size_t slot, CopyDirection direction,
                             std::span<const CopyPiece> copies) = 0;
  /// Whether what was started last in that slot is done. Errors: the device's.
  virtual Result<bool> finished(std::size_t slot) = 0;
  /// Whether the engine itself computes the checksum of such a chunk to or from the arena, of the
  /// bytes in KV memory: what was there, or what has arrived. Then nobody reads the arena's.
  virtual bool can_check(CopyDirection /*direction*/, std::span<const CopyPiece> /*copies*/) const {
    return false;
  }
  /// CRC32C of the chunk's pieces, one after another. REQUIRES: `copies` are what was started last
  /// in that slot; can_check() of them; finished(slot).
  virtual std::uint32_t checksum(std::size_t /*slot*/, std::span<const CopyPiece> /*copies*/) {
    return 0;
  }
};

}  // namespace thaw::kvsnap
