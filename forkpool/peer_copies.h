#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "forkpool/ledger.h"
#include "forkpool/loop.h"
#include "forkpool/protocol.h"
#include "forkpool/transfers.h"

namespace thaw::forkpool {

/// Copies prefixes straight out of one worker's KV memory into another's, where no process in
/// between touches a byte: from one GPU to the next, or between memory files. The target maps the
/// source's memory by the descriptor that the pool holds and begins to copy the blocks that the
/// ledger knows of; meanwhile the source lends them, so that they stay what they are. Only then,
/// and if they have lain there ever since the target was told, does what was copied count; else it
/// copies what is lent now. The source takes them back once they are there.
///
///     pool ─[peer] borrow─► target ── copies ──► target ─restore_done─► pool ─take_back─► source
///       └─lend─► source ─lent─► pool ─lent─► target
///
/// The memory outlives its process, so a source that dies once it has lent costs nothing: no
/// successor is started before the target has answered or is gone. What was copied from one that
/// dies before is given up. Belongs to the loop's thread.
class PeerCopies {
 public:
  using End = Transfers::End;
  using Done = Transfers::Done;
  /// What it needs of the worker slots.
  struct Slots {
    Transfers::Send send;  ///< to one that is ready, else nowhere
    std::function<DeviceMemory(std::uint32_t worker)> kv_memory;
    std::function<const Ledger&(std::uint32_t worker)> ledger;
    std::function<void(std::uint32_t worker, bool held)> hold;
  };

  PeerCopies(Loop& loop, Slots slots) : loop_(loop), slots_(std::move(slots)) {}

  /// Whether it may work: the source's memory is known, and the pair has not failed again and
  /// again.
  bool possible(const End& from, const End& to) const;
  bool lends(std::uint32_t worker) const { return slots_.kv_memory(worker).kv_bytes > 0; }

  /// Copies the first `num_blocks` blocks of `names`. `done` is called once, from the loop, not
  /// from within this call; at the latest after `deadline`, when the copy itself may go on. Errors:
  /// kUnavailable where an end died, kUnsupported where the target cannot map the memory or has no
  /// room: the arena may serve then.
  void start(const End& from, const End& to, PrefixNames& names, std::size_t num_blocks,
             std::chrono::milliseconds deadline, Done done);

  void on_lent(std::uint32_t worker, const LentFrame& frame);
  void on_restore_done(std::uint32_t worker, const RestoreDoneFrame& frame);
  /// The process is gone for certain (waitid).
  void on_exit(kvsnap::Holder process);

  /// Whether a worker has been asked for something here and has not answered.
  bool waits_for(std::uint32_t worker) const;

  std::uint64_t num_copies() const { return num_copies_; }
  std::uint64_t copied_bytes() const { return copied_bytes_; }

  /// Called with every finished copy: payload bytes and time.
  std::function<void(std::uint64_t bytes, Clock::Duration took)> on_measured;

 private:
  using Pair = std::pair<std::uint32_t, std::uint32_t>;  ///< from, to
  struct Copy {
    End from;
    End to;
    std::size_t num_blocks = 0;
    std::vector<Hash128> names;  ///< of the blocks
    std::vector<BlockId> told;  ///< which the target may have begun to copy
    std::uint64_t version = 0;  ///< of the source's ledger then
    Done done;
    bool lent = false;  ///< and the target has been told
    Clock::TimePoint started;
    std::unique_ptr<Loop::Timer> timer;
  };
  /// What a target has been told of a source's memory.
  struct Introduction {
    std::uint32_t generation = 0;  ///< of the target
    SharedFd memory;
  };

  void introduce(const Copy& copy);
  void finish(std::uint64_t id, Result<std::uint32_t> result);
  void report(Copy& copy, Result<std::uint32_t> result);

  Loop& loop_;
  Slots slots_;
  std::map<std::uint64_t, Copy> copies_;
  std::map<Pair, Introduction> introductions_;
  std::map<Pair, int> failures_;  ///< in a row
  std::uint64_t num_copies_ = 0;
  std::uint64_t copied_bytes_ = 0;
  std::uint64_t next_id_ = std::uint64_t{1} << 63;  ///< apart from those of Transfers
};

}  // namespace thaw::forkpool
