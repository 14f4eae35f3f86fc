#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/base/result.h"
#include "engine/base/types.h"
#include "engine/checkpoint/weight_image.h"
#include "engine/model/config.h"
#include "engine/ops/attention.h"
#include "engine/ops/device.h"

namespace thaw::model {

/// Rows of one sequence in a step: `tokens` at positions first_position ... Any subset of the rows
/// may ask for logits (the last one for sampling; others for speculation and prompt_logprobs).
struct SequenceRows {
  std::span<const TokenId> tokens;
  int first_position = 0;
  /// Covers positions 0 .. first_position + tokens.size() - 1; blocks of earlier positions are
  /// filled.
  std::span<const BlockId> block_table;
  /// Indices into `tokens`, ascending.
  std::span<const int> logit_rows;
};

struct Batch {
  std::vector<SequenceRows> sequences;
};

/// Names one launched step; collect each exactly once, in order.
using StepHandle = std::uint64_t;

/// Logits of the rows asked for, in batch order: [num_rows, vocab_size] float32. Valid until the
/// next collect().
struct StepLogits {
  std::span<const float> values;
  int num_rows = 0;
  int vocab_size = 0;
  std::span<const float> row(int index) const {
    return values.subspan(static_cast<std::size_t>(index) * vocab_size, vocab_size);
  }
};

/// A decoder-only model that writes KV into the pool's memory and returns logits. Not thread-safe:
/// one engine thread calls it.
class Model {
 public:
  virtual ~Model() = default;
  virtual const ModelConfig& config() const = 0;
  virtual const ops::PagedKv& kv() const = 0;
  /// Starts a step; its inputs must stay alive until collect(). On the CPU the work is done when
  /// this returns. Errors leave the model usable, the batch's KV rows undefined.
  virtual Result<StepHandle> launch(const Batch& batch) = 0;
  virtual Result<StepLogits> collect(StepHandle handle) = 0;
};

struct ModelOptions {
  ops::KvDType kv_dtype = ops::KvDType::kBF16;
  int max_positions = 0;  ///< 0: the config's
};

/// The model of an image. `image` and `kv_memory` (whole blocks; the rest is ignored) must
/// outlive it. Errors: missing or misshapen tensor, kv_memory under one block.
Result<std::unique_ptr<Model>> make_model(ops::Device& device,
                                          const checkpoint::WeightImageView& image,
                                          std::span<std::byte> kv_memory,
                                          const ModelOptions& options);

/// Bytes of one KV block for `config` and `dtype`.
std::size_t kv_block_bytes(const ModelConfig& config, ops::KvDType dtype);

/// H(weights digest, kv dtype and layout, RoPE parameters, kernel set): the part of every cache
/// root that the engine knows (base/hash.h make_cache_root).
Hash128 engine_fingerprint(const checkpoint::WeightImageView& image, ops::KvDType dtype,
                           const ops::Device& device);

}  // namespace thaw::model
