#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "engine/base/clock.h"
#include "engine/base/trunk_keeping.h"
#include "engine/base/types.h"
#include "forkpool/ledger.h"
#include "kvsnap/arena.h"

namespace thaw::forkpool {

using TrunkId = std::uint64_t;  ///< never used twice

/// KV of whole blocks that lies somewhere besides the workers' KV memory.
struct Trunk {
  Hash128 root;
  std::vector<TokenId> token_ids;
  std::vector<Hash128> names;  ///< of its blocks, chained
  std::uint64_t bytes = 0;  ///< of KV
  std::optional<kvsnap::SnapshotId> snapshot;  ///< in the arena
  std::string file;  ///< that holds it, in the spill directory; empty: none
  std::string object;  ///< that holds it, in the store: its key; empty: none
  bool has_owner = false;  ///< somebody said whose it is
  TrunkOwner owner;
  int pins = 0;  ///< of callers
  bool is_arena_pinned = false;
  int failures = 0;  ///< to bring it to a worker, in a row
  Clock::TimePoint retry_at{};  ///< it is not tried again before

  void set_owner(const TrunkOwner& whose) {
    owner = whose;
    has_owner = true;
  }
  /// Whether this machine has it.
  bool is_here() const { return snapshot || !file.empty(); }
  /// Bringing it to a worker failed. Whatever stood in its way may be over: the first times it is
  /// tried again at once, then after 10 s, 20 s, ... up to ten minutes.
  void failed_to_come(Clock::TimePoint now);
  void came() {
    failures = 0;
    retry_at = {};
  }
  bool is_anywhere() const { return is_here() || !object.empty(); }
  std::uint32_t num_tokens() const { return static_cast<std::uint32_t>(token_ids.size()); }
};

/// A pinned trunk must not leave the arena unless a file holds it. To be called after any of the
/// three has changed. `arena` may be null.
void settle_pin(kvsnap::Arena* arena, Trunk& trunk);

/// Which trunks there are, by the chained names of their blocks: any prefix of one can be found.
/// One thread.
class TrunkIndex {
 public:
  /// The first `num_blocks` blocks of `names`. The trunk that has exactly these, where there is
  /// one.
  TrunkId add(PrefixNames& names, std::size_t num_blocks, std::uint64_t bytes);

  Trunk* find(TrunkId id);
  /// The trunk whose last block has that name.
  Trunk* find(const Hash128& last_block, TrunkId* id = nullptr);
  /// The trunk with that snapshot, or 0.
  TrunkId with_snapshot(kvsnap::SnapshotId snapshot) const;
  /// Forgets it. Unknown ids are ignored.
  void remove(TrunkId id);

  struct Found {
    TrunkId id = 0;
    std::uint32_t num_tokens = 0;  ///< that it and the prompt have in common, whole blocks
  };
  enum class Reach { kHere, kStore };  ///< what this machine has, or what the store has, too
  /// The trunk within reach that has the most in common with a prompt; of several one that is here,
  /// and that with the fewest bytes.
  std::optional<Found> longest(PrefixNames& names, Reach reach = Reach::kHere) const;

  std::size_t size() const { return trunks_.size(); }
  const std::map<TrunkId, Trunk>& trunks() const { return trunks_; }

 private:
  std::map<TrunkId, Trunk> trunks_;
  std::unordered_map<Hash128, std::vector<TrunkId>, Hash128Hasher> by_block_;
  TrunkId next_id_ = 1;
};

}  // namespace thaw::forkpool
