#pragma once

#include <string>
#include <string_view>

#include "coalescer/openai/call.h"
#include "coalescer/openai/json_fields.h"

namespace thaw::coalescer {

/// Reads what Anthropic's Messages API says in its own words: `system`, `messages`, `tools`,
/// `tool_choice`, `thinking`, `output_config`, `stop_sequences`, `max_tokens`, `cache_control`.
/// What it shares with the other endpoints has been read. Sets `fields`' error where something is
/// wrong, or where the answer has no place for what is asked (`n`, `logprobs`, `echo`).
void read_messages_call(JsonFields& fields, ApiCall& call);

/// POST /v1/messages/count_tokens: the body `{"input_tokens": N}`. Slow for long prompts.
ApiResult<std::string> count_message_tokens(std::string_view body, const ServedModels& models);

}  // namespace thaw::coalescer
