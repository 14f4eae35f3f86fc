#include "engine/text/tokenizer_bpe.h"

#include <algorithm>
#include <functional>
#include <limits>

#include "engine/text/tokenizer_unicode.h"

namespace thaw::text {
namespace {

// Up to this many symbols a scan of all pairs per merge is faster than a heap.
constexpr std::size_t kShortWord = 48;
constexpr std::uint32_t kNone = std::numeric_limits<std::uint32_t>::max();  // no neighbour

std::uint64_t heap_entry(std::uint32_t rank, std::uint32_t position) {
  return (static_cast<std::uint64_t>(rank) << 32) | position;
}

}  // namespace

void BpeSymbols::split(std::string_view word, std::vector<TokenId>& ids) const {
  ids.clear();
  if (by_character_) return split_characters(word, ids);
  for (const char c : word) {
    const TokenId id = bytes_[static_cast<std::uint8_t>(c)];
    if (id >= 0) ids.push_back(id);
  }
}

void BpeSymbols::split_characters(std::string_view word, std::vector<TokenId>& ids) const {
  const char* at = word.data();
  const char* const end = at + word.size();
  while (at < end) {
    const auto first = static_cast<std::uint8_t>(*at);
    if (first < ascii_.size() && ascii_[first] >= 0) {
      ids.push_back(ascii_[first]);
      ++at;
      continue;
    }
    const Utf8Step step = decode_utf8(at, end);
    const std::string_view character(at, step.length);
    at += step.length;
    if (step.kind == Utf8Step::Kind::kValid) {
      if (const auto it = characters_.find(step.code_point); it != characters_.end()) {
        ids.push_back(it->second);
        continue;
      }
    }
    const std::size_t before = ids.size();
    for (const char c : character) {
      ids.push_back(bytes_[static_cast<std::uint8_t>(c)]);
    }
    if (std::find(ids.begin() + static_cast<std::ptrdiff_t>(before), ids.end(), -1) == ids.end()) {
      continue;
    }
    ids.resize(before);
    const bool fused = fuse_unknown_ && !ids.empty() && ids.back() == unknown_;
    if (unknown_ >= 0 && !fused) ids.push_back(unknown_);
  }
}

void BpeMerges::apply(Scratch& scratch) const {
  if (scratch.ids.size() < 2) return;
  if (scratch.ids.size() <= kShortWord) {
    merge_short(scratch);
  } else {
    merge_long(scratch);
  }
}

void BpeMerges::merge_short(Scratch& scratch) const {
  std::vector<TokenId>& ids = scratch.ids;
  std::size_t count = ids.size();
  std::array<Merge, kShortWord> merges;  // of the pair (i, i + 1)
  for (std::size_t i = 0; i + 1 < count; ++i) {
    merges[i] = find(ids[i], ids[i + 1]);
  }
  while (count > 1) {
    std::size_t best = 0;
    for (std::size_t i = 1; i + 1 < count; ++i) {
      if (merges[i].rank < merges[best].rank) best = i;
    }
    if (merges[best].rank == kNoMerge) break;
    ids[best] = merges[best].result;
    for (std::size_t i = best + 1; i + 1 < count; ++i) {
      ids[i] = ids[i + 1];
      merges[i] = merges[i + 1];
    }
    --count;
    if (best > 0) merges[best - 1] = find(ids[best - 1], ids[best]);
    if (best + 1 < count) merges[best] = find(ids[best], ids[best + 1]);
  }
  ids.resize(count);
}

// A min-heap of (rank, position) over a linked list of symbols. An entry is stale when its left
// symbol is gone or the pair there now has another rank.
void BpeMerges::merge_long(Scratch& scratch) const {
  auto& [ids, merges, next, previous, heap] = scratch;
  const auto count = static_cast<std::uint32_t>(ids.size());
  merges.assign(count, Merge{});
  next.resize(count);
  previous.resize(count);
  heap.clear();
  for (std::uint32_t i = 0; i < count; ++i) {
    next[i] = i + 1 < count ? i + 1 : kNone;
    previous[i] = i > 0 ? i - 1 : kNone;
    if (next[i] != kNone) merges[i] = find(ids[i], ids[i + 1]);
    if (merges[i].rank != kNoMerge) heap.push_back(heap_entry(merges[i].rank, i));
  }
  std::make_heap(heap.begin(), heap.end(), std::greater<>());
  // Structured bindings cannot be captured portably.
  const auto renew = [&scratch, this](std::uint32_t i) {
    const std::uint32_t right = scratch.next[i];
    Merge& found = scratch.merges[i];
    found = right != kNone ? find(scratch.ids[i], scratch.ids[right]) : Merge{};
    if (found.rank == kNoMerge) return;
    scratch.heap.push_back(heap_entry(found.rank, i));
    std::push_heap(scratch.heap.begin(), scratch.heap.end(), std::greater<>());
  };
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), std::greater<>());
    const auto best = static_cast<std::uint32_t>(heap.back() >> 32);
    const auto left = static_cast<std::uint32_t>(heap.back());
    heap.pop_back();
    if (ids[left] < 0 || merges[left].rank != best) continue;
    const std::uint32_t right = next[left];
    ids[left] = merges[left].result;
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
