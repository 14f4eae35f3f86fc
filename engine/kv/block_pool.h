#pragma once

#include <cstddef>
#include <vector>

#include "engine/base/types.h"

namespace thaw::kv {

/// Free list and reference counts of a worker's KV blocks. A block belongs to every holder of a
/// reference; it is free at zero. One thread.
class BlockPool {
 public:
  explicit BlockPool(std::size_t num_blocks);

  std::size_t num_blocks() const { return references_.size(); }
  std::size_t num_free() const { return free_.size(); }

  /// A block with one reference, or -1 when none is free.
  BlockId allocate();
  /// REQUIRES: the block has a reference.
  void add_reference(BlockId block);
  /// True when this was the last one and the block is free now. REQUIRES: it has a reference.
  bool release(BlockId block);
  int references(BlockId block) const { return references_[static_cast<std::size_t>(block)]; }
  bool is_free(BlockId block) const { return references(block) == 0; }
  /// Takes a given free block (adoption after a worker's death). REQUIRES: it is free.
  void take(BlockId block);

 private:
  std::vector<int> references_;
  std::vector<BlockId> free_;
  std::vector<std::size_t> place_in_free_;  ///< of a free block; meaningless for others
};

}  // namespace thaw::kv
