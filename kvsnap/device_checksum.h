#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "engine/cuda/buffer.h"
#include "engine/cuda/stream.h"
#include "kvsnap/copy_pipeline.h"

namespace thaw::kvsnap {

/// CRC32C of bytes in device memory, computed where they lie. A checksum is linear: each thread
/// sums every 256th unit of 16 bytes, as a polynomial, and the sums are put together at the end.
/// Not thread-safe; the current device is the one it was made on.
class DeviceChecksum {
 public:
  /// Which end of a copy lies in device memory.
  enum class End { kSource, kDestination };
  /// Of one call: 8 MiB in 32 pieces, each with a slice of its own that is not full.
  static constexpr std::size_t kMostSlices = 160;
  static constexpr std::size_t kSliceBytes = std::size_t{64} << 10;
  using Results = std::array<std::uint32_t, kMostSlices>;

  /// Throws where the device is full.
  explicit DeviceChecksum(cuda::StreamView stream);

  /// Whether enqueue() can take that end of `copies`: aligned, all wanted, not too many.
  static bool can_check(std::span<const CopyPiece> copies, End end);
  /// Enqueues the sums of all of them; `results` is pinned memory. REQUIRES: can_check().
  void enqueue(std::span<const CopyPiece> copies, End end, Results& results,
               cuda::StreamView stream) const;
  /// CRC32C of them one after another, from what enqueue() left in `results` once the stream is
  /// past it.
  static std::uint32_t checksum(std::span<const CopyPiece> copies, const Results& results);

 private:
  cuda::DeviceBuffer<std::uint32_t> tables_;
};

}  // namespace thaw::kvsnap
