#pragma once

#include <cstddef>
#include <cstdint>

// The table of compiled kernels. Each instruction set has one translation unit that is built with
// its own flags and fills one table; nothing else of such a unit may be visible, so this header
// stays free of inline functions and of the standard library's templates.

namespace thaw::ops::cpu {

/// Rows of a weight panel: one output is one SIMD lane.
inline constexpr int kLanes = 16;
/// Columns of a quantised block, and of a block of rounded activations.
inline constexpr int kBlockCols = 32;
/// Columns of a unit of the packings that keep their format's two levels of scales.
inline constexpr int kSuperCols = 256;
/// Most rows of x that one kernel call takes.
inline constexpr int kTileRows = 16;
inline constexpr int kSplitKeys = 256;
inline constexpr int kSplitBlocks = 16;

/// How the kernels see a panel; the same numbers as ops::Packing.
enum class PanelKind : std::uint32_t {
  kF32 = 1,
  kF16 = 2,
  kBF16 = 3,
  kQ4Scale16 = 4,
  kQ4Scale32 = 5,
  kQ8 = 6,
  kQ6 = 7,
  kQ5Scale16 = 8,
  kQ5Super = 9,
  kQ2Super = 10,
  kQ3Super = 11,
  kIq4 = 12,
};

/// 32 activations of one row, rounded: x ~ scale * q.
struct ActBlock {
  std::int8_t q[kBlockCols];
  float scale;
  float scaled_sum;  ///< scale * float(sum_low + sum_high)
  std::int32_t sum_low;  ///< of q[0..15]
  std::int32_t sum_high;  ///< of q[16..31]
};

/// out[t * out_stride + row] = weight row . x row t, for one tile of at most kTileRows rows of x.
struct PanelArgs {
  PanelKind kind;
  const std::byte* data;  ///< panel 0 of the matrix
  std::int64_t rows;
  std::int64_t cols;
  std::int64_t panel_begin;
  std::int64_t panel_end;
  /// Quantised kinds: ActBlock[cols / 32][num_tokens]; float kinds: float[cols][num_tokens].
  const void* x;
  int num_tokens;
  float* out;
  std::int64_t out_stride;
};

enum class KvElement : std::uint32_t { kBF16 = 0, kF16 = 1, kF32 = 2 };

/// One query row of one head inside a split. `partial` is [padded head_dim] of unnormalised output,
/// then the max and the sum; see attention_partial_floats.
struct SplitRow {
  const float* q;
  float* partial;
  int begin;  ///< keys of this split that the row sees: begin .. end - 1
  int end;  ///< begin + 1 .. 256
};

/// Rows that read the same blocks of one (layer, kv head) in one split.
struct SplitArgs {
  const std::byte* k_slabs[kSplitBlocks];
  const std::byte* v_slabs[kSplitBlocks];
  KvElement element;
  int head_dim;
  /// How much to ask for ahead of each slab's use, from its start: its own size, more where the
  /// heads behind it come next, 0 where it was asked for already.
  int prefetch_bytes;
  float scale;
  const SplitRow* rows;
  int num_rows;
  float* scratch;  ///< attention_scratch_floats(head_dim), 64-byte aligned, one per thread
};

constexpr int padded_head_dim(int head_dim) {
  return (head_dim + kLanes - 1) / kLanes * kLanes;
}
constexpr int attention_partial_floats(int head_dim) {
  return padded_head_dim(head_dim) + kLanes;
}
constexpr int kMaxQueryTile = 8;
constexpr int attention_scratch_floats(int head_dim) {
  return kSplitKeys * padded_head_dim(head_dim) +
         kMaxQueryTile * (kSplitKeys + padded_head_dim(head_dim));
}

/// Kernels of one instruction set. All tables compute the same bits.
struct Kernels {
  /// Rounds rows x[t * x_stride ...] of a tile to ActBlock[cols / 32][num_tokens].
  void (*quantize_tile)(const float* x, std::int64_t x_stride, int num_tokens, std::int64_t cols,
                        ActBlock* out);
  void (*linear_panels)(const PanelArgs& args);
  void (*rms_norm)(const float* x, const float* weight, float eps, int num_rows, int width,
                   float* out);
  void (*add)(float* x, const float* y, std::int64_t count);
  void (*swiglu)(const float* gate, const float* up, std::int64_t count, float* out);
  /// Rotates num_heads heads of one row by the table row (cos, sin).
  void (*rope_row)(const float* cos, const float* sin, int rotary_dim, bool half_split,
                   int num_heads, int head_dim, float* x);
  void (*exp)(const float* x, std::int64_t count, float* out);
  void (*attention_split)(const SplitArgs& args);
  /// state becomes the merge of state and the next split's partial.
  void (*attention_merge)(float* state, const float* partial, int head_dim);
  /// out = state's output over its sum, [head_dim].
  void (*attention_finish)(const float* state, int head_dim, float* out);
};

const Kernels& generic_kernels();
#if defined(THAW_X86_KERNELS)
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
#endif

}  // namespace thaw::ops::cpu
