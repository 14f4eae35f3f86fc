#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "engine/base/types.h"
#include "engine/ops/device.h"

namespace thaw::ops {

enum class KvDType : std::uint8_t { kBF16 = 0, kF16 = 1, kF32 = 2 };

/// Paged KV memory as kernels see it. One block holds all layers:
/// [num_layers][2 (K, V)][num_kv_heads][slab], a slab being block_size x head_dim elements: K is
/// stored transposed, [head_dim][block_size], so that one SIMD lane is one key; V is
/// [block_size][head_dim].
struct PagedKv {
  std::byte* base = nullptr;
  KvDType dtype = KvDType::kBF16;
  int num_layers = 0;
  int num_kv_heads = 0;
  int head_dim = 0;

  std::size_t element_bytes() const { return dtype == KvDType::kF32 ? 4 : 2; }
  std::size_t slab_bytes() const { return element_bytes() * kBlockSize * head_dim; }
  std::size_t block_bytes() const { return slab_bytes() * num_kv_heads * 2 * num_layers; }
  std::byte* slab(BlockId block, int layer, bool value, int kv_head) const {
    return base + block_bytes() * static_cast<std::size_t>(block) +
           slab_bytes() * ((static_cast<std::size_t>(layer) * 2 + (value ? 1 : 0)) * num_kv_heads +
                           static_cast<std::size_t>(kv_head));
  }
};

/// Rows of one sequence inside a batch: rows [first_row, first_row + num_rows) are at positions
/// first_position, first_position + 1, ... The table covers all of them.
struct AttentionSequence {
  std::span<const BlockId> block_table;
  int first_row = 0;
  int num_rows = 0;
  int first_position = 0;
};

/// Rounds k and v, [rows, num_kv_heads, head_dim] float32, to the KV dtype and writes them to the
/// blocks of their positions.
void store_kv(Device& device, const PagedKv& kv, int layer,
              std::span<const AttentionSequence> sequences, const float* k, const float* v);

struct AttentionArgs {
  PagedKv kv;
  int layer = 0;
  int num_heads = 0;  ///< query heads; a multiple of kv.num_kv_heads
  int window = 0;  ///< keys that a row sees, its own included; 0: all of them
  float scale = 0.0F;  ///< usually 1/sqrt(head_dim)
  std::span<const AttentionSequence> sequences;
  const float* q = nullptr;  ///< [rows, num_heads, head_dim]
  float* out = nullptr;  ///< [rows, num_heads, head_dim]
};

/// Causal attention of every row at position p over its own sequence's keys 0 .. p, or p - window +
/// 1 .. p, all read from `kv` (store_kv first). Keys are taken in splits of 256 at absolute
/// positions; max over the split's keys first; splits merged in order. Rows whose split lies in the
/// same blocks are computed as one tile. Each row's bits depend only on its q and its keys. Window
/// as in transformers (masking_utils.py). Source: Beltagy et al., arXiv:2004.05150.
void attention(Device& device, const AttentionArgs& args);

inline constexpr int kAttentionSplit = 256;

}  // namespace thaw::ops
