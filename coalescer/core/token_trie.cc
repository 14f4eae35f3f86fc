#include "coalescer/core/token_trie.h"

#include <algorithm>
#include <cstring>

namespace thaw::coalescer {

std::size_t common_prefix(std::span<const TokenId> a, std::span<const TokenId> b) {
  const std::size_t length = std::min(a.size(), b.size());
  // memcmp over chunks runs at memory speed; only the last chunk is looked at token by token.
  constexpr std::size_t kChunk = 64;
  std::size_t shared = 0;
  while (shared + kChunk <= length &&
         std::memcmp(a.data() + shared, b.data() + shared, kChunk * sizeof(TokenId)) == 0) {
    shared += kChunk;
  }
  while (shared < length && a[shared] == b[shared])
    ++shared;
  return shared;
}

std::int32_t TokenTrie::insert(std::span<const TokenId> tokens) {
  std::int32_t current = 0;
  ++nodes_[0].num_sequences;
  while (!tokens.empty()) {
    auto& children = nodes_[static_cast<std::size_t>(current)].children;
    const auto found = std::find_if(children.begin(), children.end(), [&](const auto& child) {
      return child.first == tokens.front();
    });
    if (found == children.end()) {
      const auto leaf = static_cast<std::int32_t>(nodes_.size());
      children.emplace_back(tokens.front(), leaf);
      Node node;
      node.parent = current;
      node.edge = tokens;
      node.depth_tokens = nodes_[static_cast<std::size_t>(current)].depth_tokens +
                          static_cast<std::uint32_t>(tokens.size());
      node.num_sequences = 1;
      nodes_.push_back(std::move(node));
      return leaf;
    }
    std::int32_t next = found->second;
    const std::size_t edge_tokens = nodes_[static_cast<std::size_t>(next)].edge.size();
    const std::size_t shared = common_prefix(nodes_[static_cast<std::size_t>(next)].edge, tokens);
    if (shared < edge_tokens) next = split(next, shared);
    ++nodes_[static_cast<std::size_t>(next)].num_sequences;
    tokens = tokens.subspan(shared);
    current = next;
  }
  return current;
}

// Puts a new node above `node`, `edge_tokens` into its edge, and returns it.
std::int32_t TokenTrie::split(std::int32_t node, std::size_t edge_tokens) {
  const auto upper = static_cast<std::int32_t>(nodes_.size());
  Node made;
  Node& lower = nodes_[static_cast<std::size_t>(node)];
  made.parent = lower.parent;
  made.edge = lower.edge.first(edge_tokens);
  made.depth_tokens =
      lower.depth_tokens - static_cast<std::uint32_t>(lower.edge.size() - edge_tokens);
  made.num_sequences = lower.num_sequences;
  lower.edge = lower.edge.subspan(edge_tokens);
  made.children.emplace_back(lower.edge.front(), node);
  lower.parent = upper;
  for (auto& child : nodes_[static_cast<std::size_t>(made.parent)].children) {
    if (child.second == node) child.second = upper;
  }
  nodes_.push_back(std::move(made));
  return upper;
}

}  // namespace thaw::coalescer
