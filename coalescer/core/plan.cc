#include "coalescer/core/plan.h"

#include <map>

#include "coalescer/core/token_trie.h"

namespace thaw::coalescer {
namespace {

// Adds the trunks of one trie to the plan. trunk_of[node] is the deepest trunk at or above the
// node.
std::vector<std::int32_t> add_trunks(const TokenTrie& trie, ForkPlan& plan) {
  const std::vector<TokenTrie::Node>& nodes = trie.nodes();
  std::vector<std::int32_t> trunk_of(nodes.size(), -1);
  std::vector<std::int32_t> pending{0};
  while (!pending.empty()) {
    const std::int32_t index = pending.back();
    pending.pop_back();
    const TokenTrie::Node& node = nodes[static_cast<std::size_t>(index)];
    std::int32_t& trunk = trunk_of[static_cast<std::size_t>(index)];
    if (node.parent >= 0) trunk = trunk_of[static_cast<std::size_t>(node.parent)];
    if (node.num_sequences >= 2 && node.depth_tokens > 0) {
      plan.trunks.push_back({trunk, node.depth_tokens, node.num_sequences});
      trunk = static_cast<std::int32_t>(plan.trunks.size()) - 1;
    }
    for (const auto& [token, child] : node.children)
      pending.push_back(child);
  }
  return trunk_of;
}

}  // namespace

std::string cache_key(const GenerateRequest& request) {
  std::string key;
  for (const std::string* field :
       {&request.tenant, &request.cache_salt, &request.model, &request.adapter}) {
    key += std::to_string(field->size());
    key += ':';
    key += *field;
  }
  return key;
}

ForkPlan make_plan(std::vector<GenerateRequest> requests) {
  struct Group {
    TokenTrie trie;
    std::vector<std::size_t> members;
    std::vector<std::int32_t> end_nodes;
  };
  std::map<std::string, Group> groups;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    Group& group = groups[cache_key(requests[i])];
    group.members.push_back(i);
    group.end_nodes.push_back(group.trie.insert(requests[i].prompt));
  }

  ForkPlan plan;
  std::vector<std::int32_t> trunk_of_request(requests.size(), -1);
  for (const auto& [key, group] : groups) {
    const std::vector<std::int32_t> trunk_of = add_trunks(group.trie, plan);
    for (std::size_t i = 0; i < group.members.size(); ++i) {
      trunk_of_request[group.members[i]] = trunk_of[static_cast<std::size_t>(group.end_nodes[i])];
    }
  }
  plan.requests.reserve(requests.size());
  for (std::size_t i = 0; i < requests.size(); ++i) {
    plan.requests.push_back({std::move(requests[i]), trunk_of_request[i]});
  }
  return plan;
}

}  // namespace thaw::coalescer
