#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "forkpool/ledger.h"
#include "forkpool/loop.h"
#include "forkpool/protocol.h"
#include "kvsnap/arena.h"

namespace thaw::forkpool {

/// Moves prefixes between workers through the arena, and knows which snapshots lie there. One
/// transfer: the source writes its blocks into leased extents (unless a snapshot of that prefix is
/// published already), the pool publishes the manifest, the target restores it. Leases end when
/// their holder has answered or has exited, never earlier. Belongs to the loop's thread.
class Transfers {
 public:
  /// One end: a process that serves.
  struct End {
    kvsnap::Holder process;
    std::string kv_layout;
    std::uint64_t block_bytes = 0;
  };
  using Send = std::function<void(std::uint32_t worker, const Frame& frame)>;
  /// Tokens that the target holds now.
  using Done = std::function<void(Result<std::uint32_t> tokens)>;

  /// `arena` may be null: every transfer fails then.
  Transfers(Loop& loop, kvsnap::Arena* arena, Send send);

  /// Copies the first `num_blocks` blocks of `names`. `done` is called once, from the loop, not
  /// from within this call; at the latest after `deadline`, when the transfer itself may go on.
  void start(const End& from, const End& to, PrefixNames& names, std::size_t num_blocks,
             std::chrono::milliseconds deadline, Done done);

  void on_snapshot_done(std::uint32_t worker, const SnapshotDoneFrame& frame);
  void on_restore_done(std::uint32_t worker, const RestoreDoneFrame& frame);
  /// The process is gone for certain (waitid).
  void on_exit(kvsnap::Holder process);

  std::uint64_t arena_bytes() const { return arena_ ? arena_->size_bytes() : 0; }
  std::uint64_t arena_used_bytes() const { return arena_ ? arena_->used_bytes() : 0; }
  std::uint64_t num_snapshots() const { return arena_ ? arena_->num_snapshots() : 0; }

  /// Called with every finished transfer that wrote a snapshot: payload bytes and time.
  std::function<void(std::uint64_t bytes, Clock::Duration took)> on_measured;

 private:
  /// A snapshot being written; `readers` wait for it.
  struct Writing {
    kvsnap::Holder source;
    kvsnap::LeaseId lease = 0;
    Hash128 name;
    kvsnap::Manifest manifest;
    std::vector<std::uint64_t> readers;  ///< keys of moves_
  };
  struct Move {
    End to;
    Done done;
    std::optional<kvsnap::LeaseId> reading;
    std::uint32_t num_tokens = 0;
    std::uint64_t payload_bytes = 0;
    bool wrote = false;  ///< its snapshot was written for it
    Clock::TimePoint started;
    std::unique_ptr<Loop::Timer> timer;
  };

  void restore(std::uint64_t move, kvsnap::SnapshotId snapshot);
  void finish(std::uint64_t move, Result<std::uint32_t> result);
  void report(Move& move, Result<std::uint32_t> result);

  Loop& loop_;
  kvsnap::Arena* arena_;
  Send send_;
  std::map<std::uint64_t, Writing> writings_;
  std::map<std::uint64_t, Move> moves_;
  std::unordered_map<Hash128, kvsnap::SnapshotId, Hash128Hasher> snapshots_;  ///< by last block
  std::uint64_t next_id_ = 1;  ///< of writings and moves
};

}  // namespace thaw::forkpool
