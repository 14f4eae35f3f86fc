#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "coalescer/openai/api_error.h"
#include "coalescer/openai/reasoning.h"
#include "coalescer/openai/reply_parser.h"
#include "coalescer/openai/text_codec.h"
#include "coalescer/openai/tools.h"

namespace thaw::coalescer {

struct ApiCall;

/// How a reply is held to its form, and how it is read. Follows from the call, the model's template
/// and the end of the prompt.
struct ReplyPlan {
  std::string grammar;  ///< GenerateRequest::grammar
  ThinkingStart thinking = ThinkingStart::kNone;
  /// Null: nothing is a call.
  std::shared_ptr<const std::vector<ToolSpec>> tools;
  std::string id;  ///< of the answer; the ids of calls follow from it
};

/// `prompt`: what the reply goes on. `known_tools`: a session's list, for a call that brings none;
/// empty: none. `eager`: the server's default of ToolUse::eager. `has_grammars`: false where
/// nothing can be held to a form; what may be free then is, and its calls are read from the text.
/// Errors: a forced call without tools, or of one that is not there.
ApiResult<ReplyPlan> plan_reply(const ApiCall& call, std::span<const TokenId> prompt,
                                std::string_view known_tools, bool eager, const TextCodec& codec,
                                bool has_grammars = true);

/// How the reply of choice `choice` is read. `codec` as for plan_reply.
ReplyReading reply_reading(const ReplyPlan& plan, std::size_t choice, const TextCodec& codec);

/// Markers of calls and thinking that are control tokens of the vocabulary: text leaves these out,
/// but a reply cannot be read without them.
class HiddenMarkers {
 public:
  HiddenMarkers(const ApiCall& call, const TextCodec& codec);
  /// What the token reads as; empty where its text shows anyway or it is no marker.
  std::string_view text_of(TokenId token) const;

 private:
  std::vector<std::pair<TokenId, std::string>> markers_;
};

}  // namespace thaw::coalescer
