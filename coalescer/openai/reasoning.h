#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include "coalescer/openai/json_fields.h"
#include "coalescer/openai/text_codec.h"
#include "coalescer/openai/tool_form.h"

namespace thaw::coalescer {

/// Where a reply stands with the model's thinking when it begins.
enum class ThinkingStart : std::uint8_t {
  kNone,  ///< it does not think, or the prompt closed the thinking
  kMayBegin,  ///< the reply may begin with the marker
  kOpen,  ///< the prompt ends inside of the thinking
};

/// By what the prompt ends with.
ThinkingStart thinking_start(const ChatForm& form, std::span<const TokenId> prompt,
                             const TextCodec& codec);

/// Reads `reasoning_effort` (or `name`), which becomes a variable of the template; "none" also
/// switches the thinking off (`enable_thinking` and `thinking` false) unless the request sets these
/// itself.
void read_reasoning_effort(JsonFields& fields, nlohmann::ordered_json& template_kwargs,
                           std::string_view name = "reasoning_effort");

}  // namespace thaw::coalescer
