// What the index would lose next, seen before it does.

#include <algorithm>
#include <unordered_map>

#include "engine/kv/radix_index.h"
#include "engine/kv/radix_node.h"

namespace thaw::kv {
namespace {

using Node = RadixIndex::Node;

/// How many blocks in a row, from `node` on towards the root, nobody keeps elsewhere.
std::size_t blocks_to_lose(const Node* node, const RadixIndex::IsKept& is_kept) {
  std::size_t count = 0;
  for (; !node->is_root() && !is_kept(node->hash); node = node->parent)
    ++count;
  return count;
}

RadixIndex::ColdPath path_to(const Node* node, std::size_t num_to_lose) {
  RadixIndex::ColdPath path;
  path.root = node->root->hash;
  path.num_to_lose = num_to_lose;
  for (; !node->is_root(); node = node->parent) {
    path.hashes.push_back(node->hash);
    path.tokens.insert(path.tokens.end(), node->token_ids.rbegin(), node->token_ids.rend());
  }
  std::ranges::reverse(path.hashes);
  std::ranges::reverse(path.tokens);
  return path;
}

}  // namespace

std::optional<RadixIndex::ColdPath> RadixIndex::find_cold_path(std::size_t within_blocks,
                                                               std::size_t min_blocks,
                                                               const IsKept& is_kept) const {
  // Plays evict(): the leaves in their order, and nodes that become leaves on the way.
  const auto& leaves = state_->leaves;
  auto next_leaf = leaves.begin();
  std::set<std::pair<std::uint64_t, Node*>> bared;
  std::unordered_map<Node*, std::size_t> children_left;
  for (std::size_t taken = 0; taken < within_blocks; ++taken) {
    const bool has_leaf = next_leaf != leaves.end();
    if (!has_leaf && bared.empty()) return std::nullopt;
    const bool take_leaf = has_leaf && (bared.empty() || *next_leaf < *bared.begin());
    const auto [last_used, node] = take_leaf ? *next_leaf : *bared.begin();
    take_leaf ? void(++next_leaf) : void(bared.erase(bared.begin()));
    // Where a chain was looked at from its end, its other nodes have nothing new to say.
    if (node->children.size() != 1) {
      const Node* end = node->is_full() ? node : node->parent;
      const std::size_t count = blocks_to_lose(end, is_kept);
      if (count >= std::max<std::size_t>(min_blocks, 1)) return path_to(end, count);
    }
    Node* parent = node->parent;
    if (parent->is_root() || parent->locks_below > 0) continue;
    auto [left, is_new] = children_left.try_emplace(parent, parent->children.size());
    if (--left->second == 0) bared.emplace(std::max(parent->last_used, last_used), parent);
  }
  return std::nullopt;
}

}  // namespace thaw::kv
