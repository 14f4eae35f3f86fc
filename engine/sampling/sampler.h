#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/base/generate.h"
#include "engine/base/result.h"

namespace thaw::sampling {

inline constexpr std::int32_t kMaxTopLogprobs = 20;

/// Clear errors for values out of range; each names the field, the value and the range.
Result<void> validate(const SamplingParams& params, int vocab_size);

/// What a sampling row may see of its sequence.
struct SamplingContext {
  std::span<const TokenId> tokens;  ///< prompt and output so far
  std::uint32_t generation_start = 0;  ///< index of the first generated token in `tokens`
  std::uint32_t choice_index = 0;
  std::span<const TokenId> eos_token_ids;
  /// Tokens that may come, token t as bit t % 32 of word t / 32; empty: all. A mask knows where a
  /// text may end, so min_tokens does not bar stop tokens beside it.
  std::span<const std::uint32_t> mask = {};

  std::span<const TokenId> generated() const { return tokens.subspan(generation_start); }
};

struct SampledToken {
  TokenId token = 0;
  float logprob = 0.0F;  ///< of the untempered, unprocessed distribution; only where asked for
  std::vector<TokenLogprob> top_logprobs;  ///< best first
};

/// Picks the next token. Processors in order: mask, allowed_token_ids, logit_bias (-100 excludes),
/// repetition penalty, presence and frequency penalties, bad_words, min_tokens (stop tokens off),
/// temperature, top_k, min_p, top_p; then the draw token_uniform(seed, choice_index, tokens.size())
/// over what is left. Ties go to the lower id; sums run in a fixed order, in double; NaN and
/// +infinity are errors, and so is a row that leaves no token.
///
/// A result is a function of the arguments alone: the object keeps only scratch memory between
/// calls. One thread.
class Sampler {
 public:
  /// `logits`: [vocab_size], not changed. REQUIRES: params are valid and every token is below
  /// vocab_size.
  Result<SampledToken> sample(std::span<const float> logits, const SamplingParams& params,
                              const SamplingContext& context);

  /// What `logits` expect of `token`, with the `num_top` best: the very bits that sample() gives
  /// where it draws that token with top_logprobs. REQUIRES: token is below vocab_size.
  Result<PromptLogprob> score(std::span<const float> logits, TokenId token, std::int32_t num_top);

 private:
  TokenId draw(std::span<const float> logits, float largest, const SamplingParams& params,
               const SamplingContext& context);
  TokenId draw_from_best(const SamplingParams& params, double uniform);
  void keep_top_k(std::span<const float> logits, float largest, const SamplingParams& params);
  void keep_nucleus(std::span<const float> logits, const SamplingParams& params);
  void add_logprobs(std::span<const float> logits, float largest, std::int32_t num_top,
                    SampledToken& sampled);

  std::vector<float> processed_;  ///< logits after the processors before temperature
  std::vector<std::uint32_t> counts_;  ///< by token; all zero between calls
  std::vector<double> weights_;  ///< exp((logit - largest) / temperature), by token
  std::vector<double> block_sums_;  ///< of weights_
  std::vector<TokenId> ids_;  ///< candidates, best first
  std::vector<double> ranked_weights_;  ///< of ids_
  double total_weight_ = 0.0;  ///< of all tokens that top_k and min_p leave
};

}  // namespace thaw::sampling
