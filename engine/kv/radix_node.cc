#include "engine/kv/radix_node.h"

#include <string>

#include "engine/base/error.h"
#include "engine/base/hash.h"

namespace thaw::kv {
namespace {

using Node = RadixIndex::Node;

auto lower_bound(const Node& node, std::span<const TokenId> query) {
  return std::lower_bound(node.children.begin(), node.children.end(), query,
                          [](const std::unique_ptr<Node>& child, std::span<const TokenId> tokens) {
                            const auto own = child->tokens();
                            return std::lexicographical_compare(own.begin(), own.end(),
                                                                tokens.begin(), tokens.end());
                          });
}

std::size_t common_prefix(std::span<const TokenId> a, std::span<const TokenId> b) {
  return static_cast<std::size_t>(std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first -
                                  a.begin());
}

// Siblings never hold equal tokens, so the bound is the child itself.
auto find_child(Node& parent, const Node* child) {
  return parent.children.begin() + (lower_bound(parent, child->tokens()) - parent.children.begin());
}

}  // namespace

BestChild best_child(const Node& node, std::span<const TokenId> query) {
  const auto bound = lower_bound(node, query);
  BestChild best;
  if (bound != node.children.end()) best = {bound->get(), common_prefix((*bound)->tokens(), query)};
  if (bound != node.children.begin()) {
    Node* before = std::prev(bound)->get();
    const std::size_t common = common_prefix(before->tokens(), query);
    if (common > best.num_tokens) best = {before, common};
  }
  return best.num_tokens == 0 ? BestChild{} : best;
}

Node& RadixIndex::State::root(const Hash128& name) {
  std::unique_ptr<Node>& root = roots[name];
  if (!root) {
    root = std::make_unique<Node>();
    root->state = this;
    root->root = root.get();
    root->hash = name;
  }
  return *root;
}

void RadixIndex::State::update_leaf(Node* node, std::uint64_t last_used) {
  leaves.erase({node->last_used, node});
  node->last_used = last_used;
  if (node->evictable_leaf()) leaves.insert({node->last_used, node});
}

void RadixIndex::State::lock(Node* node, bool is_use) {
  leaves.erase({node->last_used, node});
  if (is_use) node->last_used = ++tick;
  for (Node* at = node; at != nullptr; at = at->parent) {
    if (at->locks_below++ == 0 && !at->is_root()) --num_unlocked;
  }
}

void RadixIndex::State::unlock(Node* node, bool is_use) {
  for (Node* at = node; at != nullptr; at = at->parent) {
    if (--at->locks_below == 0 && !at->is_root()) ++num_unlocked;
  }
  update_leaf(node, is_use ? ++tick : node->last_used);
}

Node* RadixIndex::State::add_child(Node* parent, std::span<const TokenId> tokens, BlockId block,
                                   const Hash128* name) {
  Node*& registered = node_of_block[static_cast<std::size_t>(block)];
  if (registered != nullptr) {
    throw Exception(make_error(Errc::kInternal, "block " + std::to_string(block) +
                                                    " is offered at two places of the index"));
  }
  auto node = std::make_unique<Node>();
  node->state = this;
  node->parent = parent;
  node->root = parent->root;
  node->block = block;
  node->num_tokens = static_cast<std::uint32_t>(tokens.size());
  std::copy(tokens.begin(), tokens.end(), node->token_ids.begin());
  pool.add_reference(block);
  registered = node.get();
  leaves.erase({parent->last_used, parent});
  Node* added = parent->children.insert(lower_bound(*parent, tokens), std::move(node))->get();
  ++num_nodes;
  ++num_unlocked;
  update_leaf(added, ++tick);
  if (added->is_full()) {
    added->hash = name != nullptr ? *name : chain_block_hash(parent->hash, tokens);
    publish(*added);
  }
  return added;
}

void RadixIndex::State::grow(Node* node, std::span<const TokenId> tokens) {
  // Its place among its siblings may change.
  Node* parent = node->parent;
  const auto place = find_child(*parent, node);
  std::unique_ptr<Node> owned = std::move(*place);
  parent->children.erase(place);
  std::copy(tokens.begin(), tokens.end(), node->token_ids.begin());
  node->num_tokens = static_cast<std::uint32_t>(tokens.size());
  parent->children.insert(lower_bound(*parent, tokens), std::move(owned));
  update_leaf(node, ++tick);
  if (node->is_full()) {
    node->hash = chain_block_hash(parent->hash, tokens);
    publish(*node);
  }
}

bool RadixIndex::State::remove_leaf(Node* leaf) {
  leaves.erase({leaf->last_used, leaf});
  node_of_block[static_cast<std::size_t>(leaf->block)] = nullptr;
  if (leaf->is_full() && listener.on_evict) listener.on_evict(leaf->hash, leaf->block);
  const bool freed = pool.release(leaf->block);
  --num_nodes;
  --num_unlocked;
  Node* parent = leaf->parent;
  const std::uint64_t last_used = std::max(parent->last_used, leaf->last_used);
  parent->children.erase(find_child(*parent, leaf));
  if (!parent->is_root()) {
    update_leaf(parent, last_used);
  } else if (parent->children.empty()) {
    roots.erase(parent->hash);
  }
  return freed;
}

void RadixIndex::State::publish(const Node& node) {
  if (!listener.on_publish) return;
  listener.on_publish({node.root->hash, node.parent->hash, node.hash, node.block, node.token_ids});
}

}  // namespace thaw::kv
