#pragma once

#include <cstdint>

#include "engine/ops/cuda/attention.h"

// The words of a plan, between planner and kernels.

namespace thaw::ops::cuda {

inline constexpr int kSplitKeys = 256;
inline constexpr int kSplitBlocks = kSplitKeys / kBlockSize;
inline constexpr int kTileRows = 128;  ///< (token, head) rows of a prefill tile
/// Rows of a decode item, and warps of its block, each of which merges one row's head at a time.
inline constexpr int kItemRows = 32;
inline constexpr int kItemWarps = 8;
inline constexpr int kWideItemRows = 64;  ///< of a wide one
inline constexpr int kWideItemWarps = 4;

/// Consecutive tokens of one sequence.
struct AttentionTile {
  std::int32_t first_row;
  std::int32_t num_tokens;
  std::int32_t first_position;
  std::int32_t table_at;  ///< word offset of the sequence's block table
};

/// One split of one or more sequences whose blocks of that split are the same.
struct alignas(16) AttentionItem {
  std::int32_t split;
  std::int32_t num_keys;  ///< keys of the split that any row sees: 1 .. 256
  std::int32_t num_entries;
  std::int32_t entries_at;  ///< word offset of AttentionEntry[num_entries]
  std::int32_t table_at;  ///< word offset of the blocks of this split
  std::int32_t settled_blocks;  ///< the first of them that no row of the batch writes to
  std::uint64_t merged;  ///< entries whose row's splits this item merges: a bit each
};

struct alignas(16) AttentionEntry {
  std::int32_t row;
  std::int32_t position;
  std::int32_t partial;  ///< index of this row and split in the workspace; those of a row follow
                         ///< one another. Not used where the row has one split alone
  std::int32_t counters_at;  ///< word offset of the row's counters, one for each KV head
};

/// First key that a row sees; `window` 0: all of them.
THAW_HOST_DEVICE constexpr int first_key(int position, int window) {
  return window > 0 && position >= window ? position - window + 1 : 0;
}

/// Splits that hold a key of the row.
THAW_HOST_DEVICE constexpr int first_split(int position, int window) {
  return first_key(position, window) / kSplitKeys;
}
THAW_HOST_DEVICE constexpr int num_splits(int position, int window) {
  return position / kSplitKeys - first_split(position, window) + 1;
}

}  // namespace thaw::ops::cuda
