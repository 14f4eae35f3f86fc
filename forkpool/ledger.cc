#include "forkpool/ledger.h"

#include <algorithm>
#include <utility>

#include "engine/base/hash.h"

namespace thaw::forkpool {

PrefixNames::PrefixNames(const PrefixNames& other, std::span<const TokenId> prompt,
                         std::size_t shared_tokens)
    : root_(other.root_), prompt_(prompt) {
  const std::size_t shared_blocks = std::min(shared_tokens / kBlockSize, other.names_.size());
  names_.assign(other.names_.begin(),
                other.names_.begin() + static_cast<std::ptrdiff_t>(shared_blocks));
}

const Hash128& PrefixNames::name(std::size_t block) {
  while (names_.size() <= block) {
    names_.push_back(
        chain_block_hash(names_.empty() ? root_ : names_.back(), tokens(names_.size())));
  }
  return names_[block];
}

void Ledger::publish(const std::vector<BlockEntry>& blocks) {
  for (const BlockEntry& block : blocks) {
    const auto [own, is_new] = by_block_.try_emplace(block.block, block.hash);
    if (!is_new && own->second != block.hash) {
      // It had another name and no evict was seen: the older one must not be offered again.
      entries_.erase(own->second);
      own->second = block.hash;
    }
    const auto [known, added] = entries_.try_emplace(block.hash, Known{block, version_ + 1});
    if (added) {
      ++version_;
      continue;
    }
    if (known->second.entry.block != block.block) {
      by_block_.erase(known->second.entry.block);
      known->second.since = ++version_;
    }
    known->second.entry = block;
  }
}

void Ledger::evict(std::span<const Hash128> hashes) {
  for (const Hash128& hash : hashes) {
    const auto found = entries_.find(hash);
    if (found == entries_.end()) continue;
    by_block_.erase(found->second.entry.block);
    entries_.erase(found);
  }
}

void Ledger::clear() {
  entries_.clear();
  by_block_.clear();
}

const BlockEntry* Ledger::alive(PrefixNames& names, std::size_t block) const {
  const auto found = entries_.find(names.name(block));
  if (found == entries_.end()) return nullptr;
  const BlockEntry& entry = found->second.entry;
  return std::ranges::equal(entry.tokens, names.tokens(block)) ? &entry : nullptr;
}

bool Ledger::unmoved(std::span<const Hash128> names, std::span<const BlockId> blocks,
                     std::uint64_t version) const {
  if (names.size() != blocks.size()) return false;
  for (std::size_t i = 0; i < names.size(); ++i) {
    const auto found = entries_.find(names[i]);
    if (found == entries_.end() || found->second.entry.block != blocks[i] ||
        found->second.since > version) {
      return false;
    }
  }
  return true;
}

std::uint32_t Ledger::alive_tokens(PrefixNames& names) const {
  if (entries_.empty()) return 0;
  std::size_t block = 0;
  while (block < names.num_blocks() && alive(names, block) != nullptr)
    ++block;
  return static_cast<std::uint32_t>(block * kBlockSize);
}

std::vector<BlockId> Ledger::alive_blocks(PrefixNames& names, std::size_t num_blocks) const {
  std::vector<BlockId> blocks;
  blocks.reserve(num_blocks);
  while (blocks.size() < num_blocks) {
    const BlockEntry* const entry = alive(names, blocks.size());
    if (entry == nullptr) break;
    blocks.push_back(entry->block);
  }
  return blocks;
}

std::vector<BlockEntry> Ledger::adoptable(std::size_t max_blocks) {
  std::unordered_map<Hash128, std::vector<const BlockEntry*>, Hash128Hasher> children;
  std::vector<const BlockEntry*> reached;
  for (const auto& [hash, known] : entries_) {
    const BlockEntry& entry = known.entry;
    if (entry.parent == entry.root) {
      reached.push_back(&entry);
    } else {
      children[entry.parent].push_back(&entry);
    }
  }
  for (std::size_t i = 0; i < reached.size(); ++i) {
    const auto found = children.find(reached[i]->hash);
    if (found == children.end()) continue;
    reached.insert(reached.end(), found->second.begin(), found->second.end());
  }
  std::vector<BlockEntry> blocks;
  blocks.reserve(std::min(reached.size(), max_blocks));
  for (const BlockEntry* entry : reached) {
    if (blocks.size() == max_blocks) break;
    blocks.push_back(*entry);
  }
  clear();
  publish(blocks);
  return blocks;
}

}  // namespace thaw::forkpool
