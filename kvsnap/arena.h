#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/base/memory_map.h"
#include "engine/base/result.h"
#include "engine/base/unique_fd.h"
#include "kvsnap/arena_memory.h"
#include "kvsnap/extent_allocator.h"
#include "kvsnap/manifest.h"
#include "kvsnap/page_warmer.h"

namespace thaw::kvsnap {

using LeaseId = std::uint64_t;  ///< never used twice by one arena
using SnapshotId = std::uint64_t;

/// One process of a worker. A respawned worker has the next generation.
struct Holder {
  std::uint32_t worker = 0;
  std::uint32_t generation = 0;

  bool operator==(const Holder&) const = default;
};

struct WriteLease {
  LeaseId id = 0;
  std::vector<Extent> extents;  ///< where the payload goes; checksums still zero
};

struct ReadLease {
  LeaseId id = 0;
  Manifest manifest;
};

/// Shared memory for KV snapshots, seen from the pool, which alone hands it out. Workers map the
/// same descriptor (ArenaView). Who may touch which bytes is decided here; nothing about it is
/// written into the memory itself, so no worker can damage it.
///
/// An extent is free, leased to one writer, or published. A published one goes back to the free
/// space once the snapshot was removed or evicted and its last read lease has ended. A dead
/// worker's write leases keep their extents until worker_exited(): a device may write until the
/// process is gone.
///
/// Not thread-safe: the pool's thread owns it.
class Arena {
 public:
  /// Called when a snapshot leaves the arena to make room.
  using EvictionListener = std::function<void(SnapshotId, const Manifest&)>;

  /// Takes `size_bytes` of address space; memory is taken as it is written.
  static Result<Arena> create(std::size_t size_bytes);

  /// Takes the whole arena's memory in the background, in huge pages where the kernel can: worth
  /// it where snapshots will be made, as each first touch of a cold page costs more than its copy.
  /// Errors: kIo.
  Result<void> warm_in_background();
  void wait_until_warm() { warmer_.wait(); }

  /// The bytes of an extent that the caller holds a lease of.
  std::span<std::byte> bytes(const Extent& extent) const {
    return memory_.mapping.bytes().subspan(extent.offset, extent.size_bytes);
  }
  /// To be inherited by workers.
  int fd() const { return memory_.fd.get(); }
  std::size_t size_bytes() const { return memory_.mapping.size_bytes(); }
  /// Size and page policy in words, for the log.
  const std::string& description() const { return memory_.description; }
  void set_eviction_listener(EvictionListener listener) { on_evict_ = std::move(listener); }

  /// Room for `num_blocks` blocks of `block_bytes`, in as few extents as the free space allows,
  /// none longer than `max_extent_bytes` where that is not 0 and whole blocks can end on a page
  /// there, the first and the last a quarter of that. Evicts published snapshots that nobody pins
  /// or reads when it must: the most bytes per prefill token saved first, then the least recently
  /// used. Errors: kResourceExhausted with the sizes; kUnavailable for a generation that has
  /// exited.
  Result<WriteLease> lease_for_writing(Holder holder, std::uint64_t num_blocks,
                                       std::uint64_t block_bytes,
                                       std::uint64_t max_extent_bytes = 0);

  /// Makes a written lease readable under a new id and ends the lease. `tokens_saved`: prefill that
  /// the snapshot spares (default: all its tokens). Errors leave the lease as it is: unknown lease,
  /// another holder's lease, extents that are not the lease's, sizes that do not add up.
  Result<SnapshotId> publish(LeaseId lease, Holder holder, Manifest manifest,
                             std::optional<std::uint64_t> tokens_saved = std::nullopt);
  /// Ends a write lease unpublished. REQUIRES: the holder has stopped writing (it said so).
  void abandon(LeaseId lease, Holder holder);

  /// Null where the snapshot is gone. Valid until the next non-const call.
  const Manifest* find(SnapshotId snapshot) const;
  /// Keeps the snapshot's bytes until end_reading(), even if it is removed meanwhile.
  Result<ReadLease> lease_for_reading(SnapshotId snapshot, Holder holder);
  void end_reading(LeaseId lease);

  /// A pinned snapshot is never evicted. Pins count.
  void pin(SnapshotId snapshot);
  void unpin(SnapshotId snapshot);
  /// Takes the snapshot away from new readers; its bytes are free when the last one has ended.
  void remove(SnapshotId snapshot);

  /// The process of `holder` is gone for certain (waitid): its leases, and those of generations
  /// before it, end. Later calls that name such a generation are refused or ignored.
  void worker_exited(Holder holder);

  std::uint64_t used_bytes() const { return allocator_.size_bytes() - allocator_.free_bytes(); }
  std::size_t num_snapshots() const;  ///< that can be found
  std::size_t num_leases() const { return writers_.size() + readers_.size(); }

  /// Every byte belongs to exactly one owner: free space, a write lease or a snapshot.
  Result<void> check_integrity() const;

 private:
  struct Writer {
    Holder holder;
    std::vector<Extent> extents;
  };
  struct Reader {
    Holder holder;
    SnapshotId snapshot = 0;
  };
  struct Snapshot {
    Manifest manifest;
    std::uint64_t tokens_saved = 1;
    std::uint64_t last_use = 0;  ///< of uses_
    int pins = 0;
    int readers = 0;
    bool removed = false;  ///< waits for its readers
  };

  explicit Arena(ArenaMemory memory);
  bool has_exited(Holder holder) const;
  bool evict_one();
  std::uint64_t evictable_bytes() const;
  void free_extents(const std::vector<Extent>& extents);
  void drop_if_unused(std::map<SnapshotId, Snapshot>::iterator snapshot);

  ArenaMemory memory_;
  PageWarmer warmer_;
  ExtentAllocator allocator_;
  EvictionListener on_evict_;
  std::map<LeaseId, Writer> writers_;
  std::map<LeaseId, Reader> readers_;
  std::map<SnapshotId, Snapshot> snapshots_;
  std::map<std::uint32_t, std::uint32_t> exited_;  ///< worker -> newest generation that has exited
  std::uint64_t next_id_ = 1;  ///< leases and snapshots
  std::uint64_t uses_ = 0;  ///< logical time for least recently used
};

}  // namespace thaw::kvsnap
