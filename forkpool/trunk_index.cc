#include "forkpool/trunk_index.h"

#include <algorithm>
#include <chrono>

namespace thaw::forkpool {

void Trunk::failed_to_come(Clock::TimePoint now) {
  constexpr int kAtOnce = 2;
  constexpr std::chrono::seconds kFirst{10};
  constexpr std::chrono::seconds kLongest{600};
  ++failures;
  if (failures <= kAtOnce) return;
  const int doublings = std::min(failures - kAtOnce - 1, 6);
  retry_at = now + std::min(kFirst * (1 << doublings), kLongest);
}

void settle_pin(kvsnap::Arena* arena, Trunk& trunk) {
  if (arena == nullptr) return;
  const bool wanted = trunk.pins > 0 && trunk.snapshot && trunk.file.empty();
  if (wanted == trunk.is_arena_pinned || !trunk.snapshot) return;
  if (wanted)
    arena->pin(*trunk.snapshot);
  else
    arena->unpin(*trunk.snapshot);
  trunk.is_arena_pinned = wanted;
}

TrunkId TrunkIndex::add(PrefixNames& names, std::size_t num_blocks, std::uint64_t bytes) {
  TrunkId id = 0;
  if (find(names.name(num_blocks - 1), &id) != nullptr) return id;
  Trunk trunk;
  trunk.root = names.root();
  trunk.bytes = bytes;
  const auto tokens = names.first_tokens(num_blocks);
  trunk.token_ids.assign(tokens.begin(), tokens.end());
  for (std::size_t block = 0; block < num_blocks; ++block) {
    trunk.names.push_back(names.name(block));
    by_block_[trunk.names.back()].push_back(next_id_);
  }
  trunks_.emplace(next_id_, std::move(trunk));
  return next_id_++;
}

Trunk* TrunkIndex::find(TrunkId id) {
  const auto found = trunks_.find(id);
  return found == trunks_.end() ? nullptr : &found->second;
}

Trunk* TrunkIndex::find(const Hash128& last_block, TrunkId* id) {
  const auto candidates = by_block_.find(last_block);
  if (candidates == by_block_.end()) return nullptr;
  for (const TrunkId candidate : candidates->second) {
    Trunk& trunk = trunks_.at(candidate);
    if (trunk.names.back() != last_block) continue;
    if (id != nullptr) *id = candidate;
    return &trunk;
  }
  return nullptr;
}

TrunkId TrunkIndex::with_snapshot(kvsnap::SnapshotId snapshot) const {
  const auto found = std::ranges::find_if(
      trunks_, [&](const auto& entry) { return entry.second.snapshot == snapshot; });
  return found == trunks_.end() ? 0 : found->first;
}

void TrunkIndex::remove(TrunkId id) {
  const auto found = trunks_.find(id);
  if (found == trunks_.end()) return;
  for (const Hash128& name : found->second.names) {
    const auto entry = by_block_.find(name);
    std::erase(entry->second, id);
    if (entry->second.empty()) by_block_.erase(entry);
  }
  trunks_.erase(found);
}

std::optional<TrunkIndex::Found> TrunkIndex::longest(PrefixNames& names, Reach reach) const {
  const Trunk* best = nullptr;
  TrunkId best_id = 0;
  std::size_t num_blocks = 0;
  const auto is_better = [](const Trunk& a, const Trunk& b) {
    return a.is_here() != b.is_here() ? a.is_here() : a.bytes < b.bytes;
  };
  for (std::size_t block = 0; block < names.num_blocks() && !by_block_.empty(); ++block) {
    const auto entry = by_block_.find(names.name(block));
    if (entry == by_block_.end()) break;
    const Trunk* longest = nullptr;
    for (const TrunkId id : entry->second) {
      const Trunk& trunk = trunks_.at(id);
      if (reach == Reach::kHere && !trunk.is_here()) continue;
      if (longest != nullptr && !is_better(trunk, *longest)) continue;
      longest = &trunk;
      best_id = id;
    }
    if (longest == nullptr) break;  // who has more blocks has these
    best = longest;
    num_blocks = block + 1;
  }
  if (best == nullptr) return std::nullopt;
  // Names are hashes: the tokens decide.
  const auto& tokens = best->token_ids;
  for (std::size_t block = 0; block < num_blocks; ++block) {
    if (!std::ranges::equal(names.tokens(block),
                            std::span(tokens).subspan(block * kBlockSize, kBlockSize))) {
      return std::nullopt;
    }
  }
  return Found{best_id, static_cast<std::uint32_t>(num_blocks * kBlockSize)};
}

}  // namespace thaw::forkpool
