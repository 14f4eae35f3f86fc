#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "forkpool/ledger.h"
#include "forkpool/loop.h"
#include "forkpool/protocol.h"
#include "forkpool/trunk_index.h"
#include "kvsnap/arena.h"

namespace thaw::forkpool {

/// Moves prefixes between workers and the arena. One transfer: the source writes its blocks into
/// leased extents (unless a snapshot of that prefix is published already) and tells which it has
/// written; the target restores each as soon as it is; the pool publishes the manifest. Leases end
/// when their holder has answered or has exited, never earlier. Keeps `trunks` right about what
/// lies in the arena. Belongs to the loop's thread.
class Transfers {
 public:
  /// One end: a process that serves.
  struct End {
    kvsnap::Holder process;
    std::string kv_layout;
    std::uint64_t block_bytes = 0;
  };
  using Send = std::function<void(std::uint32_t worker, const Frame& frame)>;
  /// Tokens that the target holds now; it publishes their blocks right behind that word.
  using Done = std::function<void(Result<std::uint32_t> tokens)>;

  /// The snapshot that was written, or was there.
  using Written = std::function<void(Result<TrunkId> trunk)>;

  /// `arena` may be null: every transfer fails then.
  Transfers(Loop& loop, kvsnap::Arena* arena, TrunkIndex& trunks, Send send);

  /// Copies the first `num_blocks` blocks of `names`. `done` is called once, from the loop, not
  /// from within this call; at the latest after `deadline`, when the transfer itself may go on.
  void start(const End& from, const End& to, PrefixNames& names, std::size_t num_blocks,
             std::chrono::milliseconds deadline, Done done);

  /// The first half: a snapshot of the first `num_blocks` blocks of `names`, which are alive at
  /// `from`. `done` is called once, from the loop, when the worker has answered or is gone: the
  /// caller has a deadline of its own.
  void write(const End& from, PrefixNames& names, std::size_t num_blocks, Written done);
  /// The second half: from the arena to a worker. `done` as of start().
  void restore(TrunkId trunk, const End& to, std::chrono::milliseconds deadline, Done done);

  void on_snapshot_part(std::uint32_t worker, const SnapshotPartFrame& frame);
  void on_snapshot_done(std::uint32_t worker, const SnapshotDoneFrame& frame);
  void on_restore_done(std::uint32_t worker, const RestoreDoneFrame& frame);
  /// The process is gone for certain (waitid).
  void on_exit(kvsnap::Holder process);

  /// Whether a worker writes or reads a snapshot and has not answered.
  bool waits_for(std::uint32_t worker) const;

  std::uint64_t arena_bytes() const { return arena_ ? arena_->size_bytes() : 0; }
  std::uint64_t arena_used_bytes() const { return arena_ ? arena_->used_bytes() : 0; }
  std::uint64_t num_snapshots() const { return arena_ ? arena_->num_snapshots() : 0; }

  void add_to(TierStatus& status) const;

  /// PoolOptions::transfer_part_bytes.
  std::uint64_t part_bytes = std::uint64_t{12} << 20;
  /// Called with every finished transfer that wrote a snapshot: payload bytes and time.
  std::function<void(std::uint64_t bytes, Clock::Duration took)> on_measured;

 private:
  /// A snapshot being written.
  struct Writing {
    kvsnap::Holder source;
    kvsnap::LeaseId lease = 0;
    std::vector<Hash128> names;
    kvsnap::Manifest manifest;
    std::vector<Written> waiting;
    std::vector<std::uint64_t> followers;  ///< moves that restore it while it is written
    std::size_t num_written = 0;  ///< extents, as far as the source has told
  };
  struct Move {
    End to;
    Done done;
    std::optional<kvsnap::LeaseId> reading;
    bool following = false;  ///< restores what is still being written
    std::uint64_t payload_bytes = 0;
    bool wrote = false;  ///< its snapshot was written for it
    Clock::TimePoint started;
    std::unique_ptr<Loop::Timer> timer;
  };

  void write(const End& from, PrefixNames& names, std::size_t num_blocks, Written done,
             std::optional<std::uint64_t> follower);
  void follow(Writing& writing, std::size_t num_written);
  std::uint64_t begin(const End& to, std::chrono::milliseconds deadline, Done done);
  void read(std::uint64_t move, TrunkId trunk);
  void finish(std::uint64_t move, Result<std::uint32_t> result);
  void report(Move& move, Result<std::uint32_t> result);

  Loop& loop_;
  kvsnap::Arena* arena_;
  TrunkIndex& trunks_;
  Send send_;
  std::map<std::uint64_t, Writing> writings_;
  std::map<std::uint64_t, Move> moves_;
  std::uint64_t num_writes_ = 0;
  std::uint64_t written_bytes_ = 0;
  std::uint64_t num_evictions_ = 0;
  std::uint64_t num_reads_ = 0;
  std::uint64_t read_bytes_ = 0;
  std::uint64_t num_refused_ = 0;
  std::uint64_t next_id_ = 1;  ///< of writings and moves
};

}  // namespace thaw::forkpool
