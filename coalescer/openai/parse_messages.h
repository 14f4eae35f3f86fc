#pragma once

#include "coalescer/openai/cache_fields.h"
#include "coalescer/openai/json_fields.h"
#include "coalescer/openai/text_codec.h"
#include "coalescer/openai/tools.h"

namespace thaw::coalescer {

/// Reads `messages`, the tools (see read_tools), `add_generation_prompt`, `chat_template_kwargs`
/// and `reasoning_effort`. Content may be a string, null or a list of text parts for every role;
/// parts are joined by line feeds, as vLLM does. Tool-call arguments become objects, which
/// templates expect. Sets `fields`' error where something is wrong. `may_be_empty`: no messages are
/// none too few. `may_know_tools`: a forced call may mean tools that the request does not bring.
/// `cache` takes the breakpoints of the parts. Gives what the request says about tools.
ToolUse read_chat_prompt(JsonFields& fields, ChatPrompt& prompt, bool may_be_empty = false,
                         bool may_know_tools = false, CacheFields* cache = nullptr);

}  // namespace thaw::coalescer
