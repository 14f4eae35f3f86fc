#pragma once

#include <cstdint>

#include "engine/cuda/stream.h"
#include "engine/ops/cuda/attention.h"
#include "engine/ops/cuda/device.h"
#include "engine/ops/cuda/tiles.h"

namespace thaw::ops::cuda {

struct RmsNormParams {
  const float* x = nullptr;  ///< [num_rows][x_stride] float32: the residual stream
  std::int64_t x_stride = 0;
  const float* weight =
      nullptr;  ///< [out.cols]; as `rows`, in place before the step's first kernel
  float eps = 0.0F;
  int num_rows = 0;
  const std::int32_t* rows = nullptr;  ///< row of x for each row of out, or null for 0, 1, ...
  Tiles out;  ///< [num_rows, cols]
};

/// out = x / sqrt(mean(x^2) + eps) * weight, per row, rounded once to bf16. Source: Zhang and
/// Sennrich, arXiv:1910.07467.
void rms_norm(const CudaDevice& device, const RmsNormParams& params, thaw::cuda::StreamView stream);

struct EmbeddingParams {
  TiledWeight table;  ///< [vocabulary, cols]: the head's own bytes where they are tied
  const std::int32_t* ids = nullptr;  ///< [num_rows], each below table.rows
  int num_rows = 0;
  float* out = nullptr;  ///< [num_rows][cols] float32
};

/// out[i] = row ids[i] of the table, widened exactly. An id outside the table gives a row of NaN.
void embedding(const CudaDevice& device, const EmbeddingParams& params,
               thaw::cuda::StreamView stream);

struct RopeAndStoreParams {
  Bf16* qkv = nullptr;  ///< [num_rows][stride]: the heads of q, then k, then v
  std::int64_t stride = 0;
  int num_rows = 0;
  AttentionShape shape;
  /// [num_rows] each: a row's position and the block that holds it; a negative block: the row
  /// stores nothing. As cos, sin and the norms they are read before the kernels just ahead are
  /// done: in place before the step's first kernel.
  const std::int32_t* positions = nullptr;
  const BlockId* blocks = nullptr;
  /// [max_position][head_dim / 2], as on the CPU (RopeTable). Null: a layer without RoPE.
  const float* cos = nullptr;
  const float* sin = nullptr;
  bool half_split = true;  ///< pairs (i, i + head_dim / 2), else (2i, 2i + 1)
  const float* q_norm = nullptr;  ///< [head_dim] RMSNorm of each head of q before RoPE, or null
  const float* k_norm = nullptr;
  float norm_eps = 0.0F;
  DeviceKv kv;
  int layer = 0;
  /// [num_rows][num_kv_heads], zeros before and after the two: which values were not finite. For
  /// linear() and mark_bad_keys() alone.
  std::uint8_t* bad_values = nullptr;
};

/// Rotates q in place and writes the rotated k, and v, to the blocks of their positions, all
/// rounded once to bf16. A v that is not finite is stored as zeros and its k as NaN: rows that see
/// the key become NaN all the same, and rows that do not see it stay what they are (a masked weight
/// of 0 times NaN would be NaN). Source: Su et al., arXiv:2104.09864.
void rope_and_store(const CudaDevice& device, const RopeAndStoreParams& params,
                    thaw::cuda::StreamView stream);

/// What is left to do where linear() stored the heads (LinearParams::heads): keys become NaN whose
/// values were not finite.
void mark_bad_keys(const CudaDevice& device, const RopeAndStoreParams& params,
                   thaw::cuda::StreamView stream);

struct ArgmaxParams {
  const float* logits = nullptr;  ///< [num_rows][stride]
  std::int64_t stride = 0;
  int num_rows = 0;
  int vocabulary = 0;
  std::int32_t* out = nullptr;  ///< [num_rows]: the best id; ties go to the lower one; -1 where any
                                ///< logit is NaN or +infinity
};

/// The greedy choice of every row.
void argmax(const CudaDevice& device, const ArgmaxParams& params, thaw::cuda::StreamView stream);

}  // namespace thaw::ops::cuda
