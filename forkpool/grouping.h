#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/base/generate.h"

namespace thaw::forkpool {

/// Requests that stay together: they share more tokens than their group does, or it is only one.
struct PrefixUnit {
  std::vector<std::size_t> members;  ///< indices into the requests
  std::uint32_t shared_tokens = 0;  ///< by all members; one member: its whole prompt
};

/// Requests of one cache root that share at least one block.
struct PrefixGroup {
  std::uint32_t trunk_tokens = 0;  ///< shared by all; 0 for a request that shares with nobody
  std::vector<PrefixUnit> units;
};

/// Tokens that two prompts of one cache root share; 0 across roots.
std::uint32_t shared_tokens(const GenerateRequest& a, const GenerateRequest& b);

/// Who shares what, among requests that are to be placed at the same time: two levels of the trie
/// over their prompts. Groups, units and members come in the order of `requests`. The plan a
/// request came with is not asked, because requests of different windows, and those that a dead
/// worker leaves behind, are placed together too.
std::vector<PrefixGroup> group_by_prefix(std::span<const GenerateRequest* const> requests);

}  // namespace thaw::forkpool
