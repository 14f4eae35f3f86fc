#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/base/types.h"
#include "forkpool/protocol.h"

namespace thaw::forkpool {

/// The chained names of a prompt's whole blocks, computed as far as somebody asks.
class PrefixNames {
 public:
  /// `prompt` is borrowed.
  PrefixNames(const Hash128& root, std::span<const TokenId> prompt)
      : root_(root), prompt_(prompt) {}
  /// The same for another prompt that shares `shared_tokens` with `other`'s: what was computed for
  /// the common blocks is kept.
  PrefixNames(const PrefixNames& other, std::span<const TokenId> prompt, std::size_t shared_tokens);

  /// `names`: of the first blocks, known already.
  PrefixNames(const Hash128& root, std::span<const TokenId> prompt, std::vector<Hash128> names)
      : root_(root), prompt_(prompt), names_(std::move(names)) {}

  std::size_t num_blocks() const { return prompt_.size() / kBlockSize; }
  /// REQUIRES: block < num_blocks().
  const Hash128& name(std::size_t block);
  std::span<const TokenId> tokens(std::size_t block) const {
    return prompt_.subspan(block * kBlockSize, kBlockSize);
  }
  std::span<const TokenId> first_tokens(std::size_t num_blocks) const {
    return prompt_.first(num_blocks * kBlockSize);
  }
  const Hash128& root() const { return root_; }

 private:
  Hash128 root_;
  std::span<const TokenId> prompt_;
  std::vector<Hash128> names_;
};

/// Which KV blocks of one worker slot are complete in its KV pool, by what its processes published
/// and evicted. Outlives them: it is what a successor adopts. One thread.
class Ledger {
 public:
  void publish(const std::vector<BlockEntry>& blocks);
  void evict(std::span<const Hash128> hashes);
  void clear();

  std::size_t size() const { return entries_.size(); }

  /// Leading tokens of a prompt that are alive, in whole blocks.
  std::uint32_t alive_tokens(PrefixNames& names) const;
  /// The blocks that the first `num_blocks` of a prompt lie in, as far as they are alive.
  std::vector<BlockId> alive_blocks(PrefixNames& names, std::size_t num_blocks) const;
  /// Grows with every block that comes to lie where it was not before.
  std::uint64_t version() const { return version_; }
  /// Whether blocks of these names lie in `blocks`, one each, and have since that version(). A
  /// worker tells of an eviction before it writes the block again: they have been the same bytes
  /// all the while.
  bool unmoved(std::span<const Hash128> names, std::span<const BlockId> blocks,
               std::uint64_t version) const;

  /// Every block whose chain down to its root is whole, parents before children, at most
  /// `max_blocks`. The rest, which no one could reach, is dropped from the ledger.
  std::vector<BlockEntry> adoptable(std::size_t max_blocks);

 private:
  struct Known {
    BlockEntry entry;
    std::uint64_t since = 0;  ///< version() when it came to lie there
  };
  const BlockEntry* alive(PrefixNames& names, std::size_t block) const;

  std::unordered_map<Hash128, Known, Hash128Hasher> entries_;
  std::unordered_map<BlockId, Hash128> by_block_;  // a block's bytes have one name
  std::uint64_t version_ = 0;
};

}  // namespace thaw::forkpool
