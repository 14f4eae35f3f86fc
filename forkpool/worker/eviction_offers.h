#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <unordered_set>

#include "engine/kv/block_pool.h"
#include "engine/kv/radix_index.h"
#include "forkpool/protocol.h"

namespace thaw::forkpool::worker {

/// Finds trunks that will soon be evicted, for the pool to keep as snapshots while they are still
/// there. It begins when a quarter of the KV pool is left, so that a copy is done before its blocks
/// are needed; nothing waits for it. A trunk is offered once as long as it is alive. One thread.
class EvictionOffers {
 public:
  /// The references must outlive it. `min_tokens`: see InitFrame::offer_min_tokens.
  EvictionOffers(const kv::BlockPool& pool, const kv::RadixIndex& index, std::uint32_t min_tokens)
      : pool_(&pool), index_(&index), min_tokens_(min_tokens) {}

  /// To be called between steps, and not while the one before is copied. Looks only when blocks
  /// have been taken since it last found nothing.
  std::optional<OfferFrame> next();
  /// The block's KV is gone.
  void on_evict(const Hash128& hash) {
    offered_.erase(hash);
    ++num_evicted_;
  }

 private:
  const kv::BlockPool* pool_;
  const kv::RadixIndex* index_;
  std::uint32_t min_tokens_;
  std::unordered_set<Hash128, Hash128Hasher> offered_;  ///< blocks, alive ones
  /// When there was nothing to offer: blocks free, and those evicted by then.
  struct Moment {
    std::size_t num_free = 0;
    std::uint64_t num_evicted = 0;
  };
  std::optional<Moment> nothing_at_;
  std::uint64_t num_evicted_ = 0;
};

}  // namespace thaw::forkpool::worker
