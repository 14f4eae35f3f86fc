#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/base/generate.h"
#include "engine/base/result.h"

namespace thaw::sampling {

/// Clear errors for values out of range; each names the field, the value and the range.
Result<void> validate(const SamplingParams& params, int vocab_size);

/// What a sampling row may see of its sequence.
struct SamplingContext {
  std::span<const TokenId> tokens;  ///< prompt and output so far
  std::uint32_t generation_start = 0;  ///< index of the first generated token in `tokens`
  std::uint32_t choice_index = 0;
  std::span<const TokenId> eos_token_ids;
};

/// Restricts the next token: a grammar or an allow-list. Forks and replays with its sequence.
class MaskSource {
 public:
  virtual ~MaskSource() = default;
  virtual std::unique_ptr<MaskSource> fork() const = 0;
  /// Sets disallowed logits to -infinity.
  virtual void apply(std::span<float> logits) = 0;
  virtual Result<void> advance(TokenId token) = 0;
  virtual void roll_back(std::uint32_t num_tokens) = 0;
};

struct SampledToken {
  TokenId token = 0;
  float logprob = 0.0F;  ///< of the untempered, unprocessed distribution; only where asked for
  std::vector<TokenLogprob> top_logprobs;
};

/// Picks the next token. Processors in order: mask, logit_bias, repetition penalty, presence and
/// frequency penalties, min_tokens (stop tokens off), temperature, top_k, min_p, top_p; then the
/// draw token_uniform(seed, choice_index, tokens.size()). Ties go to the lower id; sums run in a
/// fixed order; NaN is an error. A pure function of its arguments. `logits`: [vocab_size], not
/// changed.
Result<SampledToken> sample(std::span<const float> logits, const SamplingParams& params,
                            const SamplingContext& context, MaskSource* mask = nullptr);

}  // namespace thaw::sampling
