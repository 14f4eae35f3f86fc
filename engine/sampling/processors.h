#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/sampling/sampler.h"

namespace thaw::sampling {

/// Whether any processor before temperature changes a logit.
bool needs_processing(const SamplingParams& params, const SamplingContext& context);

/// The mask, allowed_token_ids, logit_bias, penalties, bad_words and min_tokens, in place. `counts`
/// is scratch: [vocab_size], zero before and after. Penalties as OpenAI and vLLM define them:
/// presence and frequency over generated tokens, repetition over prompt and generated tokens.
void process_logits(std::span<float> logits, const SamplingParams& params,
                    const SamplingContext& context, std::vector<std::uint32_t>& counts);

}  // namespace thaw::sampling
