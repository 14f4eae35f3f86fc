#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "engine/base/result.h"
#include "engine/base/thread_pool.h"

namespace thaw::kvsnap {

/// kFromPeer is from another process's KV memory, which the reader has mapped: nobody has checksums
/// of that, and none are computed.
enum class CopyDirection { kToArena, kFromArena, kFromPeer };

/// One contiguous copy. `source` and `destination` do not overlap; one of them is in the arena, or
/// the peer's memory, the other in KV memory (of the device, where there is one).
struct CopyPiece {
  const std::byte* source = nullptr;
  std::byte* destination = nullptr;  ///< null: not wanted, only counted into the checksum
  std::size_t size_bytes = 0;
};

/// The pieces of one extent, which lie in the arena one after another from its start.
struct ExtentCopy {
  std::vector<CopyPiece> pieces;
};

/// Names one launched copy.
using CopyHandle = std::uint64_t;

/// Moves whole KV blocks between KV memory and the arena and computes the CRC32C of every extent's
/// bytes along the way, at whichever end of the copies that costs least. A copy engine works while
/// its caller goes on: launch, ask done(), collect each handle once. Not thread-safe.
class CopyPipeline {
 public:
  virtual ~CopyPipeline() = default;
  /// Starts a copy; the memory must stay valid and unchanged until collect().
  virtual Result<CopyHandle> launch(CopyDirection direction, std::vector<ExtentCopy> extents) = 0;
  /// A launch is about to come: whoever must wake up for it does so meanwhile, and the way to
  /// `peer`, if it is not null: the memory of a peer that will be copied from.
  virtual void expect(std::shared_ptr<const std::byte> /*peer*/) {}
  /// Copies on where no engine does that by itself: a few milliseconds' worth. To be called between
  /// other work as long as something is not done.
  virtual void advance() {}
  /// Whether collect() would return at once.
  virtual bool done(CopyHandle handle) const = 0;
  /// Of a copy to the arena under way: the checksums of the first extents, those that are whole in
  /// the arena already. They need not wait for the others.
  virtual std::vector<std::uint32_t> checked(CopyHandle /*handle*/) const { return {}; }
  /// Waits for the copy. The checksum of each extent, in order; none of a copy from a peer. Errors:
  /// the device's; kUnsupported for memory that this pipeline cannot copy from.
  virtual Result<std::vector<std::uint32_t>> collect(CopyHandle handle) = 0;
};

/// The CPU's: `threads` copy with stores that bypass the cache and checksum what they just read.
/// The first 16 MiB when launch() is called, the rest in steps of as much by advance(), the oldest
/// copy first. `threads` must outlive it.
std::unique_ptr<CopyPipeline> make_cpu_copy_pipeline(ThreadPool& threads);

}  // namespace thaw::kvsnap
