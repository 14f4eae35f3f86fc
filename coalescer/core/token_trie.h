#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "engine/base/types.h"

namespace thaw::coalescer {

/// Length of the common prefix of two token sequences.
std::size_t common_prefix(std::span<const TokenId> a, std::span<const TokenId> b);

/// Radix trie over token sequences that the caller keeps alive. A node is where sequences part or
/// one ends; nodes are numbered from 0 (the root) and parents come before the children they were
/// made with, except where a split put a new parent above an older node. One thread.
class TokenTrie {
 public:
  struct Node {
    std::int32_t parent = -1;
    std::span<const TokenId> edge;  ///< tokens between the parent and this node
    std::uint32_t depth_tokens = 0;  ///< tokens from the root to the end of the edge
    std::uint32_t num_sequences = 0;  ///< sequences that end at or below this node
    std::vector<std::pair<TokenId, std::int32_t>> children;  ///< by first token of the edge
  };

  TokenTrie() : nodes_(1) {}

  /// Adds a sequence and returns the node at which it ends. O(tokens).
  std::int32_t insert(std::span<const TokenId> tokens);

  const std::vector<Node>& nodes() const { return nodes_; }

 private:
  std::int32_t split(std::int32_t node, std::size_t edge_tokens);

  std::vector<Node> nodes_;
};

}  // namespace thaw::coalescer
