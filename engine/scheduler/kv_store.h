#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/base/pool_status.h"
#include "engine/base/result.h"
#include "engine/kv/block_pool.h"
#include "engine/kv/radix_index.h"
#include "engine/model/model.h"

namespace thaw::scheduler {

/// The KV of a running sequence: its block table, of which only the last block may be partly
/// filled, and that one is the sequence's own.
struct SequenceKv {
  std::vector<BlockId> blocks;  ///< one reference each
  std::uint32_t computed = 0;  ///< positions whose KV is in the blocks
  std::uint32_t launched = 0;  ///< the same, once the steps in flight are done
  std::size_t reserved = 0;  ///< blocks that no one else may take
  kv::RadixIndex::Handle lock;  ///< keeps what is published of it from eviction
};

inline std::size_t blocks_for(std::size_t num_positions) {
  return (num_positions + kBlockSize - 1) / kBlockSize;
}

/// Gives blocks to sequences and takes them back: matches and publishes in the index, copies
/// partial blocks, evicts what nobody holds, keeps the reservations. One thread.
class KvStore {
 public:
  KvStore(kv::BlockPool& pool, kv::RadixIndex& index, model::Model& model, EngineStats& stats);

  /// Fills `kv` with the longest prefix alive of `tokens`, and reserves what `num_positions`
  /// positions need beyond that. A block that matches in part is copied. False, and
  /// nothing held, where that many blocks are not to be had beside `headroom` more. REQUIRES: `kv`
  /// is empty. Errors: the copy's.
  Result<bool> attach(const Hash128& root, std::span<const TokenId> tokens,
                      std::size_t num_positions, std::size_t headroom, SequenceKv& kv);
  /// Makes the table cover `num_positions`: first with the sequence's reservation, then with blocks
  /// that no one has reserved. False where there are none left; what was got stays.
  bool grow(SequenceKv& kv, std::size_t num_positions);
  /// Puts the first kv.computed tokens into the index.
  void publish(const Hash128& root, std::span<const TokenId> tokens, SequenceKv& kv);
  /// Gives everything back; what is published stays in the index, evictable.
  void release(SequenceKv& kv);

  /// Blocks free or evictable that no sequence has reserved.
  std::size_t num_available() const;
  std::size_t num_reserved() const { return num_reserved_; }
  std::size_t num_blocks() const { return pool_->num_blocks(); }
  /// Longest prefix of `tokens` alive.
  std::uint32_t num_alive(const Hash128& root, std::span<const TokenId> tokens) const;

 private:
  BlockId take_block();
  Result<bool> attach_match(const Hash128& root, std::span<const TokenId> tokens,
                            std::size_t num_positions, std::size_t headroom, SequenceKv& kv);

  kv::BlockPool* pool_;
  kv::RadixIndex* index_;
  model::Model* model_;
  EngineStats* stats_;
  std::size_t num_reserved_ = 0;
};

}  // namespace thaw::scheduler
