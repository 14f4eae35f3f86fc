#pragma once

#include "coalescer/openai/json_fields.h"
#include "coalescer/openai/text_codec.h"

namespace thaw::coalescer {

/// Reads `messages`, `tools`, `tool_choice`, `add_generation_prompt` and `chat_template_kwargs`.
/// Content may be a string, null or a list of text parts for every role; parts are joined by line
/// feeds, as vLLM does. Tool-call arguments become objects, which templates expect. Sets `fields`'
/// error where something is wrong. `may_be_empty`: no messages are none too few.
void read_chat_prompt(JsonFields& fields, ChatPrompt& prompt, bool may_be_empty = false);

}  // namespace thaw::coalescer
