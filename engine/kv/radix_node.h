#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <set>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/kv/radix_index.h"

namespace thaw::kv {

/// One block's worth of tokens under its parent, or a cache root (no block, no tokens).
struct RadixIndex::Node {
  State* state = nullptr;
  Node* parent = nullptr;
  const Node* root = nullptr;  ///< of its tree; itself of a root
  Hash128 hash;  ///< of a root or a full node
  BlockId block = -1;
  std::uint32_t num_tokens = 0;
  BlockTokens token_ids{};
  std::uint32_t locks_below = 0;  ///< handles on this node and on its descendants
  std::uint64_t last_used = 0;  ///< tick; for a leaf it is its place in the LRU order
  /// Ordered by tokens, so that the longest common prefix with any query is beside its lower bound.
  std::vector<std::unique_ptr<Node>> children;

  bool is_root() const { return parent == nullptr; }
  bool is_full() const { return num_tokens == kBlockSize; }
  std::span<const TokenId> tokens() const { return {token_ids.data(), num_tokens}; }
  bool evictable_leaf() const { return !is_root() && children.empty() && locks_below == 0; }
};

struct RadixIndex::State {
  using Node = RadixIndex::Node;

  State(BlockPool& block_pool, Listener block_listener)
      : pool(block_pool),
        listener(std::move(block_listener)),
        node_of_block(block_pool.num_blocks(), nullptr) {}

  BlockPool& pool;
  Listener listener;
  std::unordered_map<Hash128, std::unique_ptr<Node>, Hash128Hasher> roots;
  std::vector<Node*> node_of_block;  ///< a block is in one node at most
  std::set<std::pair<std::uint64_t, Node*>> leaves;  ///< evictable ones, least recently used first
  std::size_t num_nodes = 0;  ///< roots not counted
  std::size_t num_unlocked = 0;  ///< of these, with no handle on them or below
  std::uint64_t tick = 0;

  /// The cache root of that name, made where there is none.
  Node& root(const Hash128& name);
  /// `is_use`: it becomes the most recently used one, at both ends.
  void lock(Node* node, bool is_use);
  void unlock(Node* node, bool is_use);
  /// `name`: of a full block, where it is known already.
  Node* add_child(Node* parent, std::span<const TokenId> tokens, BlockId block,
                  const Hash128* name = nullptr);
  /// Gives up a leaf without handle; true when its block is free now.
  bool remove_leaf(Node* leaf);
  /// Appends to a partial node in place. REQUIRES: `tokens` starts with the node's tokens.
  void grow(Node* node, std::span<const TokenId> tokens);
  void publish(const Node& node);
  /// Puts a leaf in its place in the LRU order, or takes it out of it.
  void update_leaf(Node* node, std::uint64_t last_used);
};

/// The child of `node` that shares most tokens with `query`, and how many. {nullptr, 0}: none.
struct BestChild {
  RadixIndex::Node* node = nullptr;
  std::size_t num_tokens = 0;
};
BestChild best_child(const RadixIndex::Node& node, std::span<const TokenId> query);

}  // namespace thaw::kv
