#pragma once

#include <cstdint>

#include "engine/ops/cuda/attention.h"

// The words of a plan, between planner and kernels.

namespace thaw::ops::cuda {

inline constexpr int kSplitKeys = 256;
inline constexpr int kSplitBlocks = kSplitKeys / kBlockSize;
inline constexpr int kTileRows = 128;  ///< (token, head) rows of a prefill tile
inline constexpr int kItemRows = 64;  ///< of a decode item

/// Consecutive tokens of one sequence.
struct AttentionTile {
  std::int32_t first_row;
  std::int32_t num_tokens;
  std::int32_t first_position;
  std::int32_t table_at;  ///< word offset of the sequence's block table
};

/// One split of one or more sequences whose blocks of that split are the same.
struct AttentionItem {
  std::int32_t split;
  std::int32_t num_keys;  ///< keys of the split that any row sees: 1 .. 256
  std::int32_t num_entries;
  std::int32_t entries_at;  ///< word offset of AttentionEntry[num_entries]
  std::int32_t table_at;  ///< word offset of the blocks of this split
};

struct AttentionEntry {
  std::int32_t row;
  std::int32_t position;
  std::int32_t partial;  ///< index of this row and split in the workspace
};

struct AttentionSplitRow {
  std::int32_t row;
  std::int32_t num_splits;
  std::int32_t partial;  ///< index of split 0; the others follow
};

}  // namespace thaw::ops::cuda
