#include "forkpool/grouping.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <tuple>

#include "engine/base/types.h"

namespace thaw::forkpool {
namespace {

auto root_key(const GenerateRequest& request) {
  return std::tie(request.tenant, request.cache_salt, request.adapter, request.model);
}

constexpr std::uint32_t kBlock = kBlockSize;

}  // namespace

std::uint32_t shared_tokens(const GenerateRequest& a, const GenerateRequest& b) {
  if (root_key(a) != root_key(b)) return 0;
  const auto parted = std::ranges::mismatch(a.prompt, b.prompt);
  return static_cast<std::uint32_t>(parted.in1 - a.prompt.begin());
}

std::vector<PrefixGroup> group_by_prefix(std::span<const GenerateRequest* const> requests) {
  std::vector<std::size_t> order(requests.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::ranges::sort(order, [&](std::size_t a, std::size_t b) {
    const auto left = root_key(*requests[a]);
    const auto right = root_key(*requests[b]);
    if (left != right) return left < right;
    const auto compared = requests[a]->prompt <=> requests[b]->prompt;
    return compared != 0 ? compared < 0 : a < b;
  });
  // shared[i]: between the neighbours i - 1 and i. In sorted order, what a run of requests shares
  // is the least of its neighbours' values.
  std::vector<std::uint32_t> shared(order.size(), 0);
  for (std::size_t i = 1; i < order.size(); ++i)
    shared[i] = shared_tokens(*requests[order[i - 1]], *requests[order[i]]);
  const auto run_end = [&](std::size_t begin, std::size_t limit, std::uint32_t at_least) {
    std::size_t end = begin + 1;
    while (end < limit && shared[end] >= at_least)
      ++end;
    return end;
  };
  const auto least = [&](std::size_t begin, std::size_t end) {
    return *std::min_element(shared.begin() + static_cast<std::ptrdiff_t>(begin) + 1,
                             shared.begin() + static_cast<std::ptrdiff_t>(end));
  };

  std::vector<PrefixGroup> groups;
  for (std::size_t begin = 0; begin < order.size();) {
    const std::size_t end = run_end(begin, order.size(), kBlock);
    PrefixGroup group;
    if (end - begin > 1) group.trunk_tokens = least(begin, end);
    for (std::size_t first = begin; first < end;) {
      const std::size_t last = run_end(first, end, group.trunk_tokens + kBlock);
      PrefixUnit unit;
      unit.members.assign(order.begin() + static_cast<std::ptrdiff_t>(first),
                          order.begin() + static_cast<std::ptrdiff_t>(last));
      std::ranges::sort(unit.members);
      unit.shared_tokens = last - first > 1
                               ? least(first, last)
                               : static_cast<std::uint32_t>(requests[order[first]]->prompt.size());
      group.units.push_back(std::move(unit));
      first = last;
    }
    const auto by_first = [](const PrefixUnit& unit) { return unit.members.front(); };
    std::ranges::sort(group.units, {}, by_first);
    groups.push_back(std::move(group));
    begin = end;
  }
  std::ranges::sort(groups, {},
                    [](const PrefixGroup& group) { return group.units.front().members.front(); });
  return groups;
}

}  // namespace thaw::forkpool
