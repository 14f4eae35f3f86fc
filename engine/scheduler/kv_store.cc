#include "engine/scheduler/kv_store.h"

#include <utility>

namespace thaw::scheduler {

KvStore::KvStore(kv::BlockPool& pool, kv::RadixIndex& index, model::Model& model,
                 EngineStats& stats)
    : pool_(&pool), index_(&index), model_(&model), stats_(&stats) {}

std::size_t KvStore::num_available() const {
  const std::size_t obtainable = pool_->num_free() + index_->num_evictable();
  return obtainable > num_reserved_ ? obtainable - num_reserved_ : 0;
}

std::uint32_t KvStore::num_alive(const Hash128& root, std::span<const TokenId> tokens) const {
  return index_->match(root, tokens).num_tokens;
}

BlockId KvStore::take_block() {
  if (pool_->num_free() == 0) stats_->evicted_blocks += index_->evict(1);
  return pool_->allocate();
}

Result<bool> KvStore::attach(const Hash128& root, std::span<const TokenId> tokens,
                             std::size_t num_positions, std::size_t headroom, SequenceKv& kv) {
  auto attached = attach_match(root, tokens, num_positions, headroom, kv);
  if (!attached || *attached) return attached;
  // A block that matches in part is needed twice while it is copied. Where that is one too many,
  // computing its few tokens again does without.
  const auto match = index_->match(root, tokens);
  if (match.partial_block < 0) return false;
  return attach_match(root, tokens.first(match.full_blocks.size() * kBlockSize), num_positions,
                      headroom, kv);
}

Result<bool> KvStore::attach_match(const Hash128& root, std::span<const TokenId> tokens,
                                   std::size_t num_positions, std::size_t headroom,
                                   SequenceKv& kv) {
  const auto match = index_->match(root, tokens);
  kv.lock = index_->lock(match);
  const std::size_t needed = blocks_for(num_positions) - match.full_blocks.size();
  if (needed + headroom > num_available()) {
    kv.lock = {};
    return false;
  }
  BlockId copy = -1;
  if (match.partial_block >= 0) {
    copy = take_block();
    if (copy < 0) {
      kv.lock = {};
      return false;
    }
    if (auto copied = model_->copy_block(match.partial_block, copy); !copied) return copied.error();
    ++stats_->copied_blocks;
  }
  for (BlockId block : match.full_blocks)
    pool_->add_reference(block);
  kv.blocks = match.full_blocks;
  kv.computed = kv.launched = match.num_tokens;
  kv.reserved = needed;
  if (copy >= 0) {
    kv.blocks.push_back(copy);
    --kv.reserved;
    // The block that was copied from need not be kept.
    kv.lock = index_->lock_full_blocks(match);
  }
  num_reserved_ += kv.reserved;
  return true;
}

bool KvStore::grow(SequenceKv& kv, std::size_t num_positions) {
  while (kv.blocks.size() < blocks_for(num_positions)) {
    if (kv.reserved == 0 && num_available() == 0) return false;
    const BlockId block = take_block();
    if (block < 0) return false;
    kv.blocks.push_back(block);
    if (kv.reserved > 0) {
      --kv.reserved;
      --num_reserved_;
    }
  }
  return true;
}

void KvStore::publish(const Hash128& root, std::span<const TokenId> tokens, SequenceKv& kv) {
  // Without the lock, insert() can drop a partial node of ours that another's now covers. Nothing
  // is evicted in between.
  kv.lock = {};
  kv.lock = index_->insert(root, tokens.first(kv.computed),
                           std::span(kv.blocks).first(blocks_for(kv.computed)));
}

void KvStore::release(SequenceKv& kv) {
  num_reserved_ -= kv.reserved;
  for (BlockId block : kv.blocks)
    pool_->release(block);
  kv = {};
}

}  // namespace thaw::scheduler
