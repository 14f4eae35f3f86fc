#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/base/result.h"
#include "engine/checkpoint/weight_image.h"
#include "engine/model/config.h"

namespace thaw::model {

// One model on several devices, without a bit of difference. Every matrix is cut by its outputs and
// by nothing else: a sum over inputs stays whole, on one rank, in the one order that it has; what
// ranks have computed is gathered, never added (engine/ops/cuda/all_gather.h). Heads are cut by KV
// heads. The embedding's table is whole on every rank, and so is what has no outputs, norms.
// Nothing here needs a CUDA toolkit.

/// One rank of a group.
struct TensorParallel {
  int rank = 0;
  int size = 1;
};

inline constexpr int kMostTensorParallel = 8;

/// Whether `size` ranks can share the model. Errors: kInvalidArgument for a rank that is none;
/// kUnsupported, naming what cannot be divided and what sizes can be had.
Result<void> check_tensor_parallel(const ModelConfig& config, TensorParallel tp);

/// `config` with the query and KV heads of one of `size` ranks: what a rank's KV pool and attention
/// see. REQUIRES: check_tensor_parallel.
ModelConfig rank_heads(const ModelConfig& config, int size);

/// Where the outputs of every rank begin, by rank, and the total behind the last: one more than
/// ranks. REQUIRES: check_tensor_parallel.
struct ShardBounds {
  ShardBounds(const ModelConfig& config, int size);

  std::vector<int> heads;
  std::vector<int> kv_heads;
  std::vector<int> attended;  ///< columns of attention's output: heads times head_dim
  std::vector<int> hidden;  ///< outputs of o and down; multiples of 16
  std::vector<int> intermediate;  ///< of gate and of up; multiples of 64
  std::vector<int> vocabulary;  ///< of the head; multiples of 16 but for the last
};

/// Bytes of an image that follow one another on a rank, too.
struct ShardCopy {
  std::uint64_t from = 0;  ///< in the image
  std::uint64_t to = 0;  ///< in the shard
  std::uint64_t bytes = 0;
};

/// A rank's part of an image for CUDA (engine/model/cuda_image.h): entries of the same names with
/// the rank's rows, at places of its own, and where their bytes come from. For one rank it is the
/// image itself. A tied head is `head` here: the rank's rows of the embedding, at its place.
struct ShardPlan {
  std::vector<checkpoint::WeightEntry> entries;  ///< without checksums
  std::vector<ShardCopy> copies;
  std::uint64_t total_bytes = 0;

  /// Null where there is none of that name.
  const checkpoint::WeightEntry* find(const std::string& name) const;
};

/// Errors: those of check_tensor_parallel; kDataLoss where an entry is misshapen.
Result<ShardPlan> plan_shard(const checkpoint::WeightImageView& image, const ModelConfig& config,
                             TensorParallel tp);

}  // namespace thaw::model
