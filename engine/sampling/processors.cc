#include "engine/sampling/processors.h"

#include <limits>

namespace thaw::sampling {
namespace {

constexpr float kExcluded = -std::numeric_limits<float>::infinity();
constexpr float kExcludingBias = -100.0F;

bool stops_are_off(const SamplingParams& params, const SamplingContext& context) {
  return context.generated().size() < params.min_tokens;
}

void apply_repetition_penalty(std::span<float> logits, float penalty,
                              std::span<const TokenId> tokens, std::vector<std::uint32_t>& seen) {
  for (TokenId token : tokens) {
    if (seen[token]++ != 0) continue;
    float& logit = logits[token];
    logit = logit < 0.0F ? logit * penalty : logit / penalty;
  }
  for (TokenId token : tokens)
    seen[token] = 0;
}

void apply_output_penalties(std::span<float> logits, float presence, float frequency,
                            std::span<const TokenId> tokens, std::vector<std::uint32_t>& counts) {
  for (TokenId token : tokens)
    ++counts[token];
  for (TokenId token : tokens) {
    if (counts[token] == 0) continue;
    logits[token] -= frequency * static_cast<float>(counts[token]) + presence;
    counts[token] = 0;
  }
}

}  // namespace

bool needs_processing(const SamplingParams& params, const SamplingContext& context) {
  return !params.logit_bias.empty() || params.repetition_penalty != 1.0F ||
         params.presence_penalty != 0.0F || params.frequency_penalty != 0.0F ||
         stops_are_off(params, context);
}

void process_logits(std::span<float> logits, const SamplingParams& params,
                    const SamplingContext& context, std::vector<std::uint32_t>& counts) {
  for (const auto& [token, bias] : params.logit_bias) {
    logits[token] = bias <= kExcludingBias ? kExcluded : logits[token] + bias;
  }
  if (params.repetition_penalty != 1.0F)
    apply_repetition_penalty(logits, params.repetition_penalty, context.tokens, counts);
  if (params.presence_penalty != 0.0F || params.frequency_penalty != 0.0F) {
    apply_output_penalties(logits, params.presence_penalty, params.frequency_penalty,
                           context.generated(), counts);
  }
  if (stops_are_off(params, context)) {
    for (TokenId token : params.stop_token_ids)
      logits[token] = kExcluded;
    if (!params.ignore_eos) {
      for (TokenId token : context.eos_token_ids)
        logits[token] = kExcluded;
    }
  }
}

}  // namespace thaw::sampling
