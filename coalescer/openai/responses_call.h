#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "coalescer/openai/call.h"
#include "coalescer/openai/json_fields.h"
#include "coalescer/openai/responses_items.h"

namespace thaw::coalescer {

/// The word of `include` that asks for log-probabilities. The others speak of tools that are not
/// here, or of thinking that is never hidden.
inline constexpr std::string_view kIncludeLogprobs = "message.output_text.logprobs";

/// What POST /v1/responses says beyond a chat: hangs on its ApiCall.
struct ResponsesRequest {
  std::vector<ResponsesItem> input;
  std::optional<std::string> instructions;  ///< a system message before everything else
  std::string previous_id;  ///< goes on with this response; empty: with none
  bool store = true;
  bool background = false;
  bool truncates = false;  ///< the oldest messages are left out where the context is too short
  /// Members that the answer repeats, without braces: `"instructions":null,...`.
  std::string echo;
};

/// The rest of parse_call for ApiKind::kResponses, behind `call.model`. The prompt of the call is
/// empty yet: what it goes on with is the server's (responses_prompt.h).
ApiResult<ApiCall> read_responses(JsonFields& fields, const ParseLimits& limits, ApiCall call);

/// GET /v1/responses/{id}?stream=true&starting_after=N
struct ResponseView {
  bool stream = false;
  std::int64_t starting_after = -1;  ///< the last event that the client has
};
ApiResult<ResponseView> parse_response_view(std::string_view query);

/// GET /v1/responses/{id}/input_items?limit=&order=&after=
struct ItemsPage {
  std::uint32_t limit = 20;
  bool newest_first = true;
  std::string after;  ///< the last item of the page before; empty: from the first
};
ApiResult<ItemsPage> parse_items_page(std::string_view query);

}  // namespace thaw::coalescer
