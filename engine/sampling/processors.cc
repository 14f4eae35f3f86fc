#include "engine/sampling/processors.h"

#include <algorithm>
#include <limits>

namespace thaw::sampling {
namespace {

constexpr float kExcluded = -std::numeric_limits<float>::infinity();
constexpr float kExcludingBias = -100.0F;

bool stops_are_off(const SamplingParams& params, const SamplingContext& context) {
  return context.mask.empty() && context.generated().size() < params.min_tokens;
}

void keep_masked(std::span<float> logits, std::span<const std::uint32_t> mask) {
  for (std::size_t token = 0; token < logits.size(); ++token) {
    const bool may_come = (mask[token / 32] >> (token % 32) & 1U) != 0;
    logits[token] = may_come ? logits[token] : kExcluded;
  }
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

void keep_allowed(std::span<float> logits, std::span<const TokenId> allowed,
                  std::vector<std::uint32_t>& marks) {
  for (TokenId token : allowed)
    marks[token] = 1;
  for (std::size_t token = 0; token < logits.size(); ++token)
    if (marks[token] == 0) logits[token] = kExcluded;
  for (TokenId token : allowed)
    marks[token] = 0;
}

/// The last token of each word whose others have just been generated.
void exclude_bad_words(std::span<float> logits, const std::vector<std::vector<TokenId>>& words,
                       std::span<const TokenId> generated) {
  for (const auto& word : words) {
    const auto begun = std::span(word).first(word.size() - 1);
    if (begun.size() > generated.size()) continue;
    if (std::ranges::equal(begun, generated.last(begun.size()))) logits[word.back()] = kExcluded;
  }
}

}  // namespace

bool needs_processing(const SamplingParams& params, const SamplingContext& context) {
  return !context.mask.empty() || !params.allowed_token_ids.empty() || !params.bad_words.empty() ||
         !params.logit_bias.empty() || params.repetition_penalty != 1.0F ||
         params.presence_penalty != 0.0F || params.frequency_penalty != 0.0F ||
         stops_are_off(params, context);
}

void process_logits(std::span<float> logits, const SamplingParams& params,
                    const SamplingContext& context, std::vector<std::uint32_t>& counts) {
  if (!context.mask.empty()) keep_masked(logits, context.mask);
  if (!params.allowed_token_ids.empty()) keep_allowed(logits, params.allowed_token_ids, counts);
  for (const auto& [token, bias] : params.logit_bias) {
    logits[token] = bias <= kExcludingBias ? kExcluded : logits[token] + bias;
  }
  if (params.repetition_penalty != 1.0F)
    apply_repetition_penalty(logits, params.repetition_penalty, context.tokens, counts);
  if (params.presence_penalty != 0.0F || params.frequency_penalty != 0.0F) {
    apply_output_penalties(logits, params.presence_penalty, params.frequency_penalty,
                           context.generated(), counts);
  }
  exclude_bad_words(logits, params.bad_words, context.generated());
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
