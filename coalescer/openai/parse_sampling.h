#pragma once

#include "coalescer/openai/call.h"
#include "coalescer/openai/json_fields.h"

namespace thaw::coalescer {

/// Most of the best tokens that are shown beside one.
inline constexpr std::int64_t kMaxTopLogprobs = 20;

/// How the reply is sampled, how many there are, and what ends them. A field that is wrong sets
/// `fields`' error.
void read_sampling_fields(JsonFields& fields, const ParseLimits& limits, ApiCall& call);

/// What of the reply is shown, and how: log-probabilities, echo, token ids.
void read_answer_fields(JsonFields& fields, ApiCall& call);

/// What is done to the prompt before the model reads it.
void read_prompt_fields(JsonFields& fields, ApiCall& call);

/// How the answer is sent, and with whom its KV is shared.
void read_delivery_fields(JsonFields& fields, ApiCall& call);

/// `thaw`, what only this server knows.
void read_thaw_fields(JsonFields& fields, ApiCall& call);

}  // namespace thaw::coalescer
