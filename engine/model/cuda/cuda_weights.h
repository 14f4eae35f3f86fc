#pragma once

#include <cstddef>
#include <vector>

#include "engine/base/result.h"
#include "engine/cuda/buffer.h"
#include "engine/model/config.h"
#include "engine/model/tensor_parallel.h"
#include "engine/ops/cuda/tiles.h"

namespace thaw::model {

/// Weights of one layer in device memory, of a rank its own rows. A pointer is null where the model
/// lacks the feature.
struct CudaLayerWeights {
  const float* attention_norm = nullptr;  // [hidden]
  ops::cuda::TiledWeight qkv;  // [(num_heads + 2 num_kv_heads) * head_dim, hidden]
  const float* qkv_bias = nullptr;
  const float* q_norm = nullptr;  // [head_dim]
  const float* k_norm = nullptr;  // [head_dim]
  ops::cuda::TiledWeight o;  // [hidden, num_heads * head_dim]
  const float* o_bias = nullptr;  // [hidden]
  const float* ffn_norm = nullptr;  // [hidden]
  ops::cuda::TiledWeight gate_up;  // [2 intermediate, hidden], interleaved
  ops::cuda::TiledWeight down;  // [hidden, intermediate]
};

struct CudaWeights {
  ops::cuda::TiledWeight token_embedding;  // [vocab, hidden]
  std::vector<CudaLayerWeights> layers;
  const float* output_norm = nullptr;  // [hidden]
  ops::cuda::TiledWeight head;  // [vocab, hidden]; the embedding's where tied
  const float* rope_factors = nullptr;  // [rope.dim / 2]
};

/// The weights of a shard whose bytes lie at `weights`, where its plan puts them. Errors: kDataLoss
/// where an entry is missing, misshapen, packed for another device, or lies behind the end.
Result<CudaWeights> read_cuda_weights(const ShardPlan& shard,
                                      cuda::DeviceSpan<const std::byte> weights,
                                      const ModelConfig& config, TensorParallel tp);

}  // namespace thaw::model
