#pragma once

#include "coalescer/openai/cache_fields.h"
#include "coalescer/openai/json_fields.h"
#include "coalescer/openai/text_codec.h"

namespace thaw::coalescer {

/// Reads `system` and `messages` of Anthropic's Messages API into the messages that chat templates
/// take: text blocks are joined by line feeds, `tool_use` becomes a call, `tool_result` a message
/// of the role `tool`, `thinking` the turn's `reasoning_content`; turns of one role that follow one
/// another are one. An assistant's last turn is gone on with. `cache_control` of blocks, of `tools`
/// and of the whole request becomes breakpoints of `cache`. `may_be_empty`: no messages are none
/// too few. Sets `fields`' error where something is wrong.
/// Source: platform.claude.com/docs/en/api/messages
void read_conversation(JsonFields& fields, ChatPrompt& prompt, CacheFields& cache,
                       bool may_be_empty);

}  // namespace thaw::coalescer
