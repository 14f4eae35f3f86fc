#include "engine/text/tokenizer_bpe.h"

#include <algorithm>
#include <functional>
#include <limits>

namespace thaw::text {
namespace {

// Up to this many symbols a scan of all pairs per merge is faster than a heap.
constexpr std::size_t kShortWord = 48;
constexpr std::uint32_t kNone = std::numeric_limits<std::uint32_t>::max();  // no neighbour

std::uint64_t heap_entry(std::uint32_t rank, std::uint32_t position) {
  return (static_cast<std::uint64_t>(rank) << 32) | position;
}

}  // namespace

void BpeMerges::encode(std::string_view word, Scratch& scratch, std::vector<TokenId>& out) const {
  std::vector<TokenId>& ids = scratch.ids;
  ids.clear();
  for (const char c : word) {
    const TokenId id = byte_ids_[static_cast<std::uint8_t>(c)];
    if (id >= 0) ids.push_back(id);
  }
  if (ids.size() > 1) {
    if (ids.size() <= kShortWord) {
      merge_short(scratch);
    } else {
      merge_long(scratch);
    }
  }
  out.insert(out.end(), ids.begin(), ids.end());
}

void BpeMerges::merge_short(Scratch& scratch) const {
  std::vector<TokenId>& ids = scratch.ids;
  std::size_t count = ids.size();
  std::array<std::uint32_t, kShortWord> ranks;  // of the pair (i, i + 1)
  for (std::size_t i = 0; i + 1 < count; ++i) {
    ranks[i] = rank(ids[i], ids[i + 1]);
  }
  while (count > 1) {
    std::size_t best = 0;
    for (std::size_t i = 1; i + 1 < count; ++i) {
      if (ranks[i] < ranks[best]) best = i;
    }
    if (ranks[best] == kNoMerge) break;
    ids[best] = results_[ranks[best]];
    for (std::size_t i = best + 1; i + 1 < count; ++i) {
      ids[i] = ids[i + 1];
      ranks[i] = ranks[i + 1];
    }
    --count;
    if (best > 0) ranks[best - 1] = rank(ids[best - 1], ids[best]);
    if (best + 1 < count) ranks[best] = rank(ids[best], ids[best + 1]);
  }
  ids.resize(count);
}

// A min-heap of (rank, position) over a linked list of symbols. An entry is stale when its left
// symbol is gone or the pair there now has another rank (a rank names one pair).
void BpeMerges::merge_long(Scratch& scratch) const {
  auto& [ids, ranks, next, previous, heap] = scratch;
  const auto count = static_cast<std::uint32_t>(ids.size());
  ranks.assign(count, kNoMerge);
  next.resize(count);
  previous.resize(count);
  heap.clear();
  for (std::uint32_t i = 0; i < count; ++i) {
    next[i] = i + 1 < count ? i + 1 : kNone;
    previous[i] = i > 0 ? i - 1 : kNone;
    if (next[i] != kNone) ranks[i] = rank(ids[i], ids[i + 1]);
    if (ranks[i] != kNoMerge) heap.push_back(heap_entry(ranks[i], i));
  }
  std::make_heap(heap.begin(), heap.end(), std::greater<>());
  // Structured bindings cannot be captured portably.
  const auto renew = [&scratch, this](std::uint32_t i) {
    const std::uint32_t right = scratch.next[i];
    std::uint32_t& found = scratch.ranks[i];
    found = right != kNone ? rank(scratch.ids[i], scratch.ids[right]) : kNoMerge;
    if (found == kNoMerge) return;
    scratch.heap.push_back(heap_entry(found, i));
    std::push_heap(scratch.heap.begin(), scratch.heap.end(), std::greater<>());
  };
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), std::greater<>());
    const auto best = static_cast<std::uint32_t>(heap.back() >> 32);
    const auto left = static_cast<std::uint32_t>(heap.back());
    heap.pop_back();
    if (ids[left] < 0 || ranks[left] != best) continue;
    const std::uint32_t right = next[left];
    ids[left] = results_[best];
    ids[right] = -1;
    next[left] = next[right];
    if (next[left] != kNone) previous[next[left]] = left;
    renew(left);
    if (previous[left] != kNone) renew(previous[left]);
  }
  std::erase(ids, -1);
}

void WordCache::put(const Key& key, const TokenId* ids, std::size_t count) {
  Slot& slot = slots_[key.slot];
  slot.words = key.words;
  slot.length = static_cast<std::uint8_t>(key.length);
  slot.count = static_cast<std::uint8_t>(count);
  std::copy_n(ids, count, slot.ids.begin());
}

}  // namespace thaw::text
