#include <algorithm>
#include <string>
#include <vector>

#include "engine/base/hash.h"
#include "engine/kv/radix_index.h"
#include "engine/kv/radix_node.h"

namespace thaw::kv {
namespace {

using Node = RadixIndex::Node;

Error inconsistent(const std::string& what) {
  return make_error(Errc::kInternal, "radix index: " + what);
}

struct Totals {
  std::size_t nodes = 0;
  std::size_t unlocked = 0;
  std::size_t leaves = 0;
};

Result<void> check_node(const RadixIndex::State& state, const Node& node, Totals& totals) {
  const std::string name = "node of block " + std::to_string(node.block);
  if (node.num_tokens == 0 || node.num_tokens > kBlockSize)
    return inconsistent(name + " holds " + std::to_string(node.num_tokens) + " tokens");
  if (!node.is_full() && !node.children.empty())
    return inconsistent(name + " is not full but has children");
  if (state.node_of_block[static_cast<std::size_t>(node.block)] != &node)
    return inconsistent(name + " is not the one registered for it");
  if (state.pool.references(node.block) < 1) return inconsistent(name + " holds a free block");
  if (node.is_full() && node.hash != chain_block_hash(node.parent->hash, node.tokens()))
    return inconsistent(name + " has a hash that is not of its tokens");
  ++totals.nodes;
  if (node.locks_below == 0) ++totals.unlocked;
  if (node.evictable_leaf() != state.leaves.contains({node.last_used, const_cast<Node*>(&node)}))
    return inconsistent(name + " is missing from the LRU order or wrongly in it");
  if (node.evictable_leaf()) ++totals.leaves;
  return {};
}

Result<void> check_children(const RadixIndex::State& state, const Node& node, Totals& totals) {
  std::uint32_t locks = 0;
  const Node* before = nullptr;
  for (const auto& child : node.children) {
    if (child->parent != &node || child->root != node.root || child->state != &state)
      return inconsistent("a child of block " + std::to_string(node.block) + " has another parent");
    if (before != nullptr) {
      const auto left = before->tokens();
      const auto right = child->tokens();
      if (!std::lexicographical_compare(left.begin(), left.end(), right.begin(), right.end()))
        return inconsistent("children of block " + std::to_string(node.block) +
                            " are equal or out of order");
    }
    before = child.get();
    locks += child->locks_below;
    if (auto checked = check_node(state, *child, totals); !checked) return checked;
  }
  if (locks > node.locks_below)
    return inconsistent("block " + std::to_string(node.block) + " counts " +
                        std::to_string(node.locks_below) + " locks, its children " +
                        std::to_string(locks));
  return {};
}

// Not by recursion: a long prompt is a chain of as many nodes as it has blocks.
Result<void> check_tree(const RadixIndex::State& state, const Node& root, Totals& totals) {
  std::vector<const Node*> pending{&root};
  while (!pending.empty()) {
    const Node& node = *pending.back();
    pending.pop_back();
    if (auto checked = check_children(state, node, totals); !checked) return checked;
    for (const auto& child : node.children)
      pending.push_back(child.get());
  }
  return {};
}

}  // namespace

Result<void> RadixIndex::check_integrity() const {
  Totals totals;
  for (const auto& [hash, root] : state_->roots) {
    if (root->hash != hash || !root->is_root()) return inconsistent("a root under another's name");
    if (auto checked = check_tree(*state_, *root, totals); !checked) return checked;
  }
  std::size_t registered = 0;
  for (const Node* node : state_->node_of_block)
    registered += node != nullptr ? 1 : 0;
  if (totals.nodes != state_->num_nodes || registered != totals.nodes)
    return inconsistent(std::to_string(totals.nodes) + " nodes, but " +
                        std::to_string(state_->num_nodes) + " counted and " +
                        std::to_string(registered) + " registered");
  if (totals.unlocked != state_->num_unlocked)
    return inconsistent(std::to_string(totals.unlocked) + " nodes are unlocked, but " +
                        std::to_string(state_->num_unlocked) + " counted");
  if (totals.leaves != state_->leaves.size())
    return inconsistent(std::to_string(totals.leaves) + " evictable leaves, but " +
                        std::to_string(state_->leaves.size()) + " in the LRU order");
  return {};
}

}  // namespace thaw::kv
