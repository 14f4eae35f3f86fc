#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/base/generate.h"
#include "engine/base/result.h"
#include "engine/base/types.h"
#include "engine/checkpoint/weight_image.h"
#include "engine/model/config.h"
#include "engine/ops/attention.h"
#include "engine/ops/device.h"

namespace thaw::model {

/// Names one launched step; collect each exactly once, in order.
using StepHandle = std::uint64_t;

/// A draw on the device: the result is that of sampling::Sampler on the same logits.
struct DeviceDraw {
  /// What `params` ask for, where it can be said with these fields: no processor changes a logit,
  /// neither top_k nor top_p cuts, no logprobs. Empty: it takes the logits on the host. REQUIRES:
  /// valid params.
  static std::optional<DeviceDraw> of(const SamplingParams& params);

  float temperature = 0.0F;  ///< 0: the largest logit, ties to the lower id
  float min_p = 0.0F;
  std::uint64_t seed = 0;
  std::uint32_t choice_index = 0;
  std::uint64_t position = 0;  ///< tokens of the sequence before the drawn one (base/random.h)
};

/// Names a token that a launched step draws: `row` counts that step's drawn rows, in batch order.
struct DrawnToken {
  StepHandle step = 0;
  int row = 0;
};

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
  /// Draws from the last logit row on the device: collect() then returns its token and not its
  /// logits.
  std::optional<DeviceDraw> draw = std::nullopt;
  /// With `draw`: it waits for give_masks().
  bool awaits_mask = false;
  /// The first row's token is one that an earlier step draws, collected or not, of the
  /// max_in_flight() last launched ones; tokens[0] is ignored. Where that draw fails, the caller
  /// ignores this row; it must do no harm to others.
  std::optional<DrawnToken> first_token = std::nullopt;
};

struct Batch {
  std::vector<SequenceRows> sequences;
};

/// What a step gives. Valid until the next collect().
struct StepOutput {
  /// Logits of the rows asked for that are not drawn, batch order: [num_rows, vocab_size] float32.
  std::span<const float> values;
  int num_rows = 0;
  int vocab_size = 0;
  /// One for each drawn row, batch order; -1 where the logits held NaN or +infinity, or nothing but
  /// -infinity that may be drawn.
  std::span<const TokenId> drawn = {};
  std::span<const float> row(int index) const {
    return values.subspan(static_cast<std::size_t>(index) * vocab_size, vocab_size);
  }
};

/// The KV pool of a model as others may see it. `base` is an address on the model's device: the
/// copy pipeline reads and writes there, everyone else goes through the model.
struct KvView {
  std::byte* base = nullptr;
  std::size_t block_bytes = 0;
  std::size_t num_blocks = 0;
  std::string layout;  ///< compared as a whole between writer and reader of a snapshot
};

/// A decoder-only model that writes KV into the pool's memory and returns logits, or draws from
/// them. Steps and block copies run one after the other in the order of their calls. Destroying a
/// model waits for what was launched. Not thread-safe: one engine thread calls it.
class Model {
 public:
  virtual ~Model() = default;
  virtual const ModelConfig& config() const = 0;
  virtual const KvView& kv() const = 0;
  /// Steps that may be launched and not collected: 1 where launch() itself does the work.
  virtual int max_in_flight() const = 0;
  /// Whether rows sampled with `params` may be drawn on the device. Never where DeviceDraw::of has
  /// nothing.
  virtual bool can_draw(const SamplingParams& params) const = 0;
  /// Starts a step. The batch has been read when this returns; on the CPU the work is done then.
  /// Errors leave the model usable, the batch's KV rows undefined.
  virtual Result<StepHandle> launch(const Batch& batch) = 0;
  /// Logit rows that a step may have where a draw of it awaits a mask; 0: none may.
  virtual int max_masked_rows() const { return 0; }
  /// What a launched step with draws that await masks still needs, once every earlier step is
  /// collected and before anything else is launched: one mask for each of its drawn rows, in batch
  /// order. Token t may be drawn where bit t % 32 of word t / 32 is set; an empty mask bars
  /// nothing. They have been read when this returns. The forward pass does not wait for them.
  virtual Result<void> give_masks(StepHandle handle,
                                  std::span<const std::span<const std::uint32_t>> masks);
  /// Waits for the oldest step not collected.
  virtual Result<StepOutput> collect(StepHandle handle) = 0;
  /// Copies a whole KV block, after every step launched so far and before every later one.
  virtual Result<void> copy_block(BlockId from, BlockId to) = 0;
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
