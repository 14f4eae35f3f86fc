#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/base/block_entry.h"
#include "engine/base/result.h"
#include "engine/base/types.h"
#include "engine/kv/block_pool.h"

namespace thaw::kv {

/// Which KV is alive in this worker: per cache root a tree whose nodes are blocks. A node holds up
/// to kBlockSize tokens and one reference on its block; only the last node of a path may hold
/// fewer, and it grows in place while the sequence that writes the block goes on. Sharing is per
/// token: a match may end inside a node, and the caller then copies that block before it writes.
///
/// Locks: a Handle keeps its node and all ancestors from eviction. match() is const; only insert(),
/// evict() and adopt() change the tree. A match costs one binary search among siblings per block.
/// One thread.
class RadixIndex {
 public:
  struct Node;

  /// Called inside insert() and evict(), for full blocks only: pool and other workers know them by
  /// these names. An eviction must reach the pool before the block is written again.
  struct Listener {
    std::function<void(const BlockEntry&)> on_publish;
    std::function<void(const Hash128& hash, BlockId block)> on_evict;
  };

  explicit RadixIndex(BlockPool& pool, Listener listener = {});
  ~RadixIndex();

  /// Keeps a path alive. Move-only; releases on destruction. Must not outlive the index.
  class Handle {
   public:
    Handle() = default;
    Handle(Handle&& other) noexcept;
    Handle& operator=(Handle&& other) noexcept;
    ~Handle();
    explicit operator bool() const { return node_ != nullptr; }

   private:
    friend class RadixIndex;
    explicit Handle(Node* node, bool is_use = true);  ///< locks it, where it is not null
    Node* node_ = nullptr;
    bool is_use_ = true;
  };

  struct Match {
    std::uint32_t num_tokens = 0;
    std::vector<BlockId> full_blocks;  ///< blocks whose kBlockSize tokens all match
    BlockId partial_block = -1;  ///< the block whose first num_tokens % kBlockSize tokens match
    Node* node = nullptr;  ///< deepest node, or null; lock() it before anything may evict
    Node* full_node = nullptr;  ///< deepest one whose tokens all match, or null
  };

  /// Longest prefix of `tokens` alive under `root`. Does not touch the LRU order; lock() does.
  Match match(const Hash128& root, std::span<const TokenId> tokens) const;
  Handle lock(const Match& match);
  /// Keeps them as lock() does, but is no use of them: the order of eviction stays.
  Handle lock_in_place(const Match& match);
  /// Without the block that matches in part.
  Handle lock_full_blocks(const Match& match);

  /// Publishes that `blocks` hold the KV of `tokens` (the last block may be partly filled). New
  /// nodes take a reference on their block; a partial node of the caller's block grows in place.
  /// Where a full block stands there already, the caller's entry becomes that one, its reference
  /// moves there, and its own block is given up: equal KV is held once. A partial last block that
  /// another node covers stays the caller's own. The handle is on the deepest node whose block is
  /// in `blocks` now, so that it keeps nothing that the caller does not use.
  /// `names`: chain_block_hash() of the first blocks, where the caller has them already.
  /// REQUIRES: blocks cover tokens; only the sequence that writes a block offers it, at one place.
  Handle insert(const Hash128& root, std::span<const TokenId> tokens, std::span<BlockId> blocks,
                std::span<const Hash128> names = {});

  /// Frees least recently used unlocked leaves until `num_blocks` are free in the pool or none is
  /// left. Returns the number of blocks freed.
  std::size_t evict(std::size_t num_blocks);
  /// Nodes that evict() could remove now: as many blocks become free, less those that someone
  /// without a handle holds a reference to.
  std::size_t num_evictable() const;
  /// Blocks that the index holds a reference to.
  std::size_t num_blocks() const;

  /// Takes over blocks that a former worker published, parents before children; entries whose
  /// parent is missing are dropped. Returns how many were taken.
  std::size_t adopt(std::span<const BlockEntry> entries);

  /// A path of whole blocks from its root on.
  struct ColdPath {
    Hash128 root;
    std::vector<TokenId> tokens;
    std::vector<Hash128> hashes;  ///< of its blocks
    std::size_t num_to_lose = 0;  ///< of these, the last ones, which nobody keeps elsewhere
  };
  using IsKept = std::function<bool(const Hash128&)>;
  /// Of what evict() would take next, as many as `within_blocks`: the first path with at least
  /// `min_blocks` blocks in a row at its end that `is_kept` knows nothing of.
  std::optional<ColdPath> find_cold_path(std::size_t within_blocks, std::size_t min_blocks,
                                         const IsKept& is_kept) const;

  /// Walks everything: counts, references, children, LRU. An error says what is inconsistent.
  Result<void> check_integrity() const;

  struct State;  ///< engine/kv/radix_node.h

 private:
  std::unique_ptr<State> state_;
};

}  // namespace thaw::kv
