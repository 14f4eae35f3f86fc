#pragma once

#include <string>

#include "coalescer/openai/reasoning.h"
#include "coalescer/openai/response_format.h"
#include "coalescer/openai/tool_form.h"
#include "coalescer/openai/tools.h"
#include "engine/base/call_limits.h"

namespace thaw::coalescer {

/// What a reply may be.
struct ReplyShape {
  const ToolUse* tools = nullptr;  ///< null: none can be called
  bool must_call = false;  ///< nothing but calls
  bool parallel = true;  ///< more than one call
  const OutputFormat* output = nullptr;  ///< of what is no call; null: text
  ThinkingStart thinking = ThinkingStart::kNone;
};

/// The mask source of GenerateRequest: JSON text of a structural tag of xgrammar 0.2.8, which holds
/// the model to `shape` as it writes in `form`. Empty where everything is allowed. What is
/// constrained begins behind the thinking. One that would be longer than kMaxGrammarBytes may be
/// cut short, but not below that: it is not to be used.
std::string grammar_document(const ReplyShape& shape, const ChatForm& form);

}  // namespace thaw::coalescer
