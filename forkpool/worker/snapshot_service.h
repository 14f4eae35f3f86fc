#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <vector>

#include "engine/kv/block_pool.h"
#include "engine/kv/radix_index.h"
#include "forkpool/protocol.h"
#include "forkpool/worker/outbox.h"
#include "kvsnap/arena_memory.h"
#include "kvsnap/copy_pipeline.h"
#include "kvsnap/snapshot_reader.h"
#include "kvsnap/snapshot_writer.h"

namespace thaw::forkpool::worker {

/// Where the KV of a worker lives, as the copy pipeline sees it.
struct KvMemory {
  std::byte* base = nullptr;
  kvsnap::KvFormat format;

  std::byte* block(BlockId id) const {
    return base + format.block_bytes * static_cast<std::size_t>(id);
  }
};

/// Whether the device may still do what it was told although nobody can wait for it any more.
bool lost_device(const Error& error);

/// Answers Snapshot and Restore frames: the one place where the engine's blocks and the arena's
/// extents meet. Whatever fails is reported in the Done frame, and the worker serves on, but for a
/// failure of the device (kCuda, or a copy that misses its deadline): it may still write, so that
/// nothing is reported and the process must end. One thread; runs between steps.
class SnapshotService {
 public:
  struct Parts {
    kv::BlockPool* pool = nullptr;
    kv::RadixIndex* index = nullptr;
    KvMemory kv;
    kvsnap::ArenaView* arena = nullptr;  ///< null: there is none, every frame is refused
    kvsnap::CopyPipeline* pipeline = nullptr;
    Outbox* outbox = nullptr;
  };

  /// The parts must outlive the service.
  explicit SnapshotService(const Parts& parts);

  /// Copies the KV of the manifest's tokens to its extents. Errors (reported): not all of the
  /// tokens alive here, with how many are; what SnapshotWriter finds.
  Result<void> snapshot(SnapshotFrame frame);
  /// Copies the manifest's KV into fresh blocks and, once all of it is verified, into the index.
  /// Blocks that are alive already are kept, not copied again. Errors (reported): no room; what
  /// SnapshotReader finds.
  Result<void> restore(RestoreFrame frame);

  /// Reports the copies that are done. Errors, as of the two above: the device's.
  Result<void> poll();
  bool busy() const { return !writes_.empty() || !reads_.empty(); }

  std::uint64_t num_snapshots() const { return num_snapshots_; }
  std::uint64_t num_restores() const { return num_restores_; }

 private:
  struct Write {
    std::uint64_t id = 0;
    kvsnap::SnapshotWriter::Pending copy;
    kv::RadixIndex::Handle lock;
  };
  struct Read {
    std::uint64_t id = 0;
    kvsnap::SnapshotReader::Pending copy;
    kv::RadixIndex::Handle lock;  ///< on what was alive before
    Hash128 cache_root;
    std::vector<TokenId> tokens;
    std::vector<BlockId> blocks;  ///< of all tokens
    std::size_t num_alive = 0;  ///< the first ones, which the index owns
  };

  Result<Write> start_write(SnapshotFrame frame);
  Result<Read> start_read(RestoreFrame frame);
  Result<std::vector<BlockId>> allocate(std::size_t num_blocks);
  Result<void> finish_write(Write& write);
  Result<void> finish_read(Read& read);
  void release(const Read& read);

  Parts parts_;
  std::unique_ptr<kvsnap::SnapshotWriter> writer_;  ///< null without an arena, as the reader
  std::unique_ptr<kvsnap::SnapshotReader> reader_;
  std::list<Write> writes_;
  std::list<Read> reads_;
  std::uint64_t num_snapshots_ = 0;
  std::uint64_t num_restores_ = 0;
};

}  // namespace thaw::forkpool::worker
