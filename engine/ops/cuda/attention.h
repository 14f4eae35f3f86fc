#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>

#include "engine/base/result.h"
#include "engine/base/types.h"
#include "engine/cuda/buffer.h"
#include "engine/cuda/stream.h"
#include "engine/ops/attention.h"
#include "engine/ops/cuda/device.h"
#include "engine/ops/cuda/tiles.h"

namespace thaw::ops::cuda {

/// Paged KV memory on the device, bf16. One block holds all layers:
/// [num_layers][2 (K, V)][num_kv_heads][slab], a slab being the 16 tokens of one head in core
/// matrices, [16 / 8][head_dim / 8][8 tokens][8 dims], K and V alike. Blocks follow one another.
struct DeviceKv {
  Bf16* base = nullptr;
  int num_layers = 0;
  int num_kv_heads = 0;
  int head_dim = 0;  ///< 64 or 128

  THAW_HOST_DEVICE std::size_t slab_elements() const {
    return static_cast<std::size_t>(kBlockSize) * head_dim;
  }
  THAW_HOST_DEVICE std::size_t block_elements() const {
    return slab_elements() * num_kv_heads * 2 * num_layers;
  }
  THAW_HOST_DEVICE Bf16* slab(BlockId block, int layer, bool value, int kv_head) const {
    return base + block_elements() * static_cast<std::size_t>(block) +
           slab_elements() *
               ((static_cast<std::size_t>(layer) * 2 + (value ? 1 : 0)) * num_kv_heads + kv_head);
  }
  /// Index of (token of the block, dim) in a slab.
  THAW_HOST_DEVICE int slab_index(int token, int dim) const {
    return token / 8 * head_dim * 8 + dim / 8 * 64 + token % 8 * 8 + dim % 8;
  }
};

/// Query rows of an item of decode: 32, which are soonest done, or 64, which read a trunk of many
/// rows half as often. Each has a kernel of its own.
enum class ItemWidth : std::int32_t { kNarrow, kWide };

/// A batch's attention work, made by the host and read by the kernels: 32-bit words in device
/// memory, so that a captured graph serves every batch that fits.
struct AttentionPlanHeader {
  std::int32_t num_tiles = 0;  ///< of prefill
  std::int32_t num_items = 0;  ///< (split, up to 32 or 64 query rows) of decode
  ItemWidth width = ItemWidth::kNarrow;  ///< of all items
  std::int32_t num_split_rows = 0;  ///< rows that the items serve
  std::int32_t tiles_at = 0;  ///< word offsets of the arrays
  std::int32_t items_at = 0;
  std::int32_t num_partials = 0;  ///< (row, split) results in the workspace
};

/// Of what plan_attention wrote.
inline AttentionPlanHeader header_of(std::span<const std::int32_t> words) {
  AttentionPlanHeader header;
  std::memcpy(static_cast<void*>(&header), words.data(), sizeof header);
  return header;
}

/// What the kernels and the planner agree on for one model; layers with another window have
/// another shape, and another plan.
struct AttentionShape {
  int num_heads = 0;  ///< a multiple of num_kv_heads, at most 16 times it
  int num_kv_heads = 0;
  int head_dim = 0;  ///< 64 or 128
  int window = 0;  ///< keys that a row sees, its own included; 0: all of them
};

/// Writes the plan of `sequences` into `words`; returns the words used. Rows of one split that lie
/// in the same blocks (a trunk that sequences share) become rows of one tile and read K and V once.
/// Chunks of prefill go to the tensor-core tile kernel, and so do sequences whose partial results
/// would be more than `max_partials`. None of these choices changes a bit.
/// Errors: `kResourceExhausted` where the plan does not fit,
/// `kInvalidArgument` for a shape that the kernels lack or a table that does not cover its rows.
/// `width`: none, and it is wide where more rows than a narrow item holds share a split.
/// `written`: whose blocks the step writes, where these are others than `sequences` (some rows of a
/// step that attend by themselves): all other keys may be read before the kernels ahead are done.
Result<std::size_t> plan_attention(const AttentionShape& shape,
                                   std::span<const AttentionSequence> sequences,
                                   std::size_t max_partials, std::span<std::int32_t> words,
                                   std::optional<ItemWidth> width = std::nullopt,
                                   std::span<const AttentionSequence> written = {});

/// float32 elements of the workspace that holds `partials` partial results.
constexpr std::size_t attention_workspace_elements(const AttentionShape& shape,
                                                   std::size_t partials) {
  return partials * static_cast<std::size_t>(shape.num_heads) *
         (static_cast<std::size_t>(shape.head_dim) + 2);
}

struct AttentionParams {
  DeviceKv kv;
  int layer = 0;
  AttentionShape shape;
  float scale = 0.0F;  ///< usually 1/sqrt(head_dim)
  const Bf16* q = nullptr;  ///< [rows][q_stride], the heads one after another
  std::int64_t q_stride = 0;
  /// Device memory: what plan_attention wrote, in place before the first kernel of the step (copied
  /// ahead of it on the stream, say): it is read before the kernels just ahead are done. It holds
  /// counters, which the kernels use and leave at zero; so one plan serves one stream at a time.
  const std::int32_t* plan = nullptr;
  /// float32, device memory: partial outputs [max_partials][num_heads][head_dim], then their max
  /// and sum [max_partials][num_heads][2].
  float* workspace = nullptr;
  std::size_t max_partials = 0;
  ItemWidth width = ItemWidth::kNarrow;  ///< the plan's
  Tiles out;  ///< [rows, num_heads * head_dim]
  bool has_tiles = true;  ///< false skips the prefill kernel: the plan has no tiles
  bool has_items = true;  ///< false skips the decode kernel
};

/// Causal attention of every row of the plan over its own sequence's keys 0 .. its position (the
/// last `window` of them), all read from `kv` (stored first, by rope_and_store or linear). Splits
/// of 256 keys at absolute positions, max over the whole split first, splits merged in order; the
/// same bits from both kernels (docs/exactness.md). Blocks that the plan does not know to be
/// written by the step are read before the kernels just ahead are done: they must have been written
/// before its first. Sources: Milakov and Gimelshein, arXiv:1805.02867; Dao, arXiv:2205.14135;
/// windows Beltagy et al., arXiv:2004.05150.
void attention(const CudaDevice& device, const AttentionParams& params,
               thaw::cuda::StreamView stream);

}  // namespace thaw::ops::cuda
