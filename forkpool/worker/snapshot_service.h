#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "engine/kv/block_pool.h"
#include "engine/kv/radix_index.h"
#include "forkpool/protocol.h"
#include "forkpool/worker/outbox.h"
#include "forkpool/worker/peer_memory.h"
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

/// Answers Snapshot, Restore, Lend and Borrow frames: the one place where the engine's blocks meet
/// the arena's extents and other workers' blocks. Whatever fails is reported in the Done frame, and
/// the worker serves on, but for a failure of the device (kCuda, or a copy that misses its
/// deadline): it may still write, so that nothing is reported and the process must end. One thread;
/// runs between steps.
class SnapshotService {
 public:
  struct Parts {
    kv::BlockPool* pool = nullptr;
    kv::RadixIndex* index = nullptr;
    KvMemory kv;
    kvsnap::ArenaView* arena = nullptr;  ///< null: there is none, every frame is refused
    kvsnap::CopyPipeline* pipeline = nullptr;
    Outbox* outbox = nullptr;
    MapPeer map_peer;  ///< null: no peer's memory can be mapped
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
  /// More of a snapshot that is being restored has been written. One that has ended is ignored.
  Result<void> arrive(const ArriveFrame& frame);

  /// Something is to be copied within a moment, from worker `from` to another: to this one, if that
  /// is a peer.
  void expect(std::uint32_t from);
  /// Maps a peer's memory in place of what was mapped of it, or forgets it. One that cannot be
  /// mapped is reported when something is to be borrowed from it.
  void meet(const PeerFrame& frame);
  /// Keeps the blocks of the tokens until take_back(). Errors (reported): not all are alive here.
  void lend(const LendFrame& frame);
  void take_back(const TakeBackFrame& frame) { loans_.erase(frame.id); }
  /// Copies a peer's blocks into fresh ones, at once where they are named, and, once they are lent,
  /// into the index; those that are alive already are not copied. Errors (reported): an unknown
  /// peer or one of another layout; a block outside of the peer's memory; no room.
  Result<void> borrow(BorrowFrame frame);
  /// What was copied counts, or which blocks are to be copied. Of what is not awaited it is
  /// ignored. Errors (reported): they are not lent; as of borrow().
  Result<void> lent(const LentFrame& frame);

  /// Reports the copies that are done. Errors, as of the two above: the device's.
  Result<void> poll();
  bool busy() const { return !writes_.empty() || !reads_.empty(); }
  /// Whether poll() has something to look for. What is left waits for frames.
  bool copying() const;

  std::uint64_t num_snapshots() const { return num_snapshots_; }
  std::uint64_t num_restores() const { return num_restores_; }

 private:
  struct Write {
    std::uint64_t id = 0;
    std::optional<std::size_t> num_told;  ///< extents, where parts are told
    kvsnap::SnapshotWriter::Pending copy;
    kv::RadixIndex::Handle lock;
  };
  /// A restore, or what is borrowed.
  struct Read {
    std::uint64_t id = 0;
    kvsnap::Manifest manifest;  ///< cache root, tokens and, of a restore, extents
    std::list<kvsnap::SnapshotReader::Pending> copies;  ///< under way
    std::size_t num_started = 0;  ///< extents
    std::optional<Error> failed;  ///< what is under way comes to its end all the same
    kv::RadixIndex::Handle lock;  ///< on what was alive before
    std::vector<BlockId> blocks;  ///< of all tokens
    std::vector<Hash128> names;  ///< of them
    std::size_t num_alive = 0;  ///< the first ones, which the index owns
    std::shared_ptr<const PeerMemory> peer;  ///< that it copies from
    std::uint64_t peer_bytes = 0;  ///< of that memory
    bool awaits_loan = false;
    std::vector<BlockId> to_copy;  ///< of the peer, once nothing is under way
    std::chrono::steady_clock::time_point started = std::chrono::steady_clock::now();

    bool over() const {
      return copies.empty() && (failed || (!awaits_loan && to_copy.empty() &&
                                           num_started == manifest.extents.size()));
    }
  };
  struct Peer {
    std::shared_ptr<const PeerMemory> memory;  ///< null: `why`
    DeviceMemory description;  ///< without its descriptors
    std::string why;
  };

  Result<Write> start_write(SnapshotFrame frame);
  Result<Read> start_read(RestoreFrame frame);
  Result<Read> start_borrow(BorrowFrame frame);
  Result<void> copy_what_is_left(Read& read);
  Result<void> copy_from_peer(Read& read, const std::vector<BlockId>& blocks);
  /// The blocks of the manifest's tokens: what is alive, locked, and fresh ones.
  Result<void> find_room(Read& read);
  Result<void> start_extents(Read& read, std::size_t end);
  /// While others are at work: the index would do it once all has arrived.
  static void name_blocks(Read& read);
  Result<void> take(Result<Read> read, std::uint64_t id);
  /// What goes wrong with a read is its failure, but for an error of the device.
  static Result<void> note(Read& read, Result<void> went);
  void tell_parts(Write& write);
  Result<std::vector<BlockId>> allocate(std::size_t num_blocks);
  Result<void> finish_write(Write& write);
  Result<void> finish_copy(Read& read);
  Result<void> finish_read(Read& read);
  void release(const Read& read);

  Parts parts_;
  std::unique_ptr<kvsnap::SnapshotWriter> writer_;  ///< null without an arena, as the reader
  std::unique_ptr<kvsnap::SnapshotReader> reader_;
  std::list<Write> writes_;
  std::list<Read> reads_;
  std::map<std::uint64_t, kv::RadixIndex::Handle> loans_;
  std::map<std::uint32_t, Peer> peers_;  ///< by worker
  std::uint64_t num_snapshots_ = 0;
  std::uint64_t num_restores_ = 0;
};

}  // namespace thaw::forkpool::worker
