#include "engine/kv/radix_index.h"

#include <utility>

#include "engine/base/error.h"
#include "engine/base/hash.h"
#include "engine/kv/radix_node.h"

namespace thaw::kv {

RadixIndex::RadixIndex(BlockPool& pool, Listener listener)
    : state_(std::make_unique<State>(pool, std::move(listener))) {}

RadixIndex::~RadixIndex() = default;

RadixIndex::Handle::Handle(Node* node, bool is_use) : node_(node), is_use_(is_use) {
  if (node_ != nullptr) node_->state->lock(node_, is_use_);
}

RadixIndex::Handle::Handle(Handle&& other) noexcept
    : node_(std::exchange(other.node_, nullptr)), is_use_(other.is_use_) {}

RadixIndex::Handle& RadixIndex::Handle::operator=(Handle&& other) noexcept {
  if (this == &other) return *this;
  Handle old(std::move(*this));
  node_ = std::exchange(other.node_, nullptr);
  is_use_ = other.is_use_;
  return *this;
}

RadixIndex::Handle::~Handle() {
  if (node_ != nullptr) node_->state->unlock(node_, is_use_);
}

RadixIndex::Match RadixIndex::match(const Hash128& root, std::span<const TokenId> tokens) const {
  Match match;
  const auto found = state_->roots.find(root);
  if (found == state_->roots.end()) return match;
  const Node* node = found->second.get();
  while (match.num_tokens < tokens.size()) {
    const auto rest = tokens.subspan(match.num_tokens);
    const BestChild best =
        best_child(*node, rest.first(std::min<std::size_t>(rest.size(), kBlockSize)));
    if (best.node == nullptr) break;
    match.num_tokens += static_cast<std::uint32_t>(best.num_tokens);
    match.node = best.node;
    if (best.num_tokens < kBlockSize) {
      match.partial_block = best.node->block;
      break;
    }
    match.full_blocks.push_back(best.node->block);
    match.full_node = best.node;
    node = best.node;
  }
  return match;
}

RadixIndex::Handle RadixIndex::lock(const Match& match) {
  return Handle(match.node);
}

RadixIndex::Handle RadixIndex::lock_in_place(const Match& match) {
  return Handle(match.node, false);
}

RadixIndex::Handle RadixIndex::lock_full_blocks(const Match& match) {
  return Handle(match.full_node);
}

RadixIndex::Handle RadixIndex::insert(const Hash128& root, std::span<const TokenId> tokens,
                                      std::span<BlockId> blocks, std::span<const Hash128> names) {
  if (blocks.size() < (tokens.size() + kBlockSize - 1) / kBlockSize) {
    throw Exception(make_error(Errc::kInternal, "insert: " + std::to_string(blocks.size()) +
                                                    " blocks do not cover " +
                                                    std::to_string(tokens.size()) + " tokens"));
  }
  if (tokens.empty()) return Handle();
  State& state = *state_;
  Node* node = &state.root(root);
  for (std::size_t begin = 0; begin < tokens.size(); begin += kBlockSize) {
    const auto part =
        tokens.subspan(begin, std::min<std::size_t>(kBlockSize, tokens.size() - begin));
    BlockId& block = blocks[begin / kBlockSize];
    Node* own = state.node_of_block[static_cast<std::size_t>(block)];
    if (own != nullptr && own->parent != node) own = nullptr;
    const BestChild best = best_child(*node, part);
    if (best.num_tokens == part.size()) {
      // Another node covers it. A shorter node of ours says nothing that this one does not.
      if (own != nullptr && own != best.node && own->evictable_leaf()) state.remove_leaf(own);
      if (own != best.node && part.size() < kBlockSize) break;
      if (block != best.node->block) {
        state.pool.add_reference(best.node->block);
        state.pool.release(block);
        block = best.node->block;
      }
      node = best.node;
    } else if (own != nullptr && own->num_tokens < part.size()) {
      state.grow(own, part);
      node = own;
    } else {
      const std::size_t number = begin / kBlockSize;
      node = state.add_child(node, part, block, number < names.size() ? &names[number] : nullptr);
    }
  }
  return Handle(node->is_root() ? nullptr : node);
}

std::size_t RadixIndex::evict(std::size_t num_blocks) {
  std::size_t num_freed = 0;
  while (state_->pool.num_free() < num_blocks && !state_->leaves.empty()) {
    if (state_->remove_leaf(state_->leaves.begin()->second)) ++num_freed;
  }
  return num_freed;
}

std::size_t RadixIndex::num_evictable() const {
  return state_->num_unlocked;
}

std::size_t RadixIndex::num_blocks() const {
  return state_->num_nodes;
}

std::size_t RadixIndex::adopt(std::span<const BlockEntry> entries) {
  State& state = *state_;
  // Chained hashes name a node on its own, but the root keeps them apart even so.
  std::unordered_map<Hash128, Node*, Hash128Hasher> taken;
  const Listener listener = std::exchange(state.listener, {});  // the pool knows these blocks
  std::size_t num_taken = 0;
  for (const BlockEntry& entry : entries) {
    const bool in_pool =
        entry.block >= 0 && static_cast<std::size_t>(entry.block) < state.pool.num_blocks();
    if (!in_pool || !state.pool.is_free(entry.block)) continue;
    Node* parent = nullptr;
    if (entry.parent == entry.root) {
      parent = &state.root(entry.root);
    } else if (const auto found = taken.find(entry.parent); found != taken.end()) {
      parent = found->second;
    }
    if (parent == nullptr || parent->root->hash != entry.root) continue;
    if (best_child(*parent, entry.tokens).num_tokens == kBlockSize) continue;
    state.pool.take(entry.block);
    Node* node = state.add_child(parent, entry.tokens, entry.block);
    state.pool.release(entry.block);  // the node's own reference stays
    taken.emplace(node->hash, node);
    ++num_taken;
  }
  state.listener = listener;
  return num_taken;
}

}  // namespace thaw::kv
