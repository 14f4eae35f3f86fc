#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "coalescer/core/session_state.h"
#include "coalescer/openai/responses_call.h"
#include "coalescer/openai/text_codec.h"

namespace thaw::coalescer {

/// What a request goes on with, from the server's store.
struct ResponsesPast {
  SharedState line;  ///< of the previous response; null: there is none
  bool has_instructions = false;  ///< the line's first message, which is not gone on with
  std::map<std::string, std::string> items;  ///< that the request refers to: JSON by id
};

/// Puts the items in that the request refers to. Errors: one that is not in `past`.
std::optional<ApiError> resolve_references(ApiCall& call, const ResponsesPast& past);

/// The prompt of the call: its instructions, the previous response's conversation and the new
/// input. Sets the call's messages and breakpoints. Where the template writes the conversation as
/// the previous response's ids read, these ids are kept as they are and so is their KV: the model's
/// own tokens, which its text alone does not tell. Slow for long ones; any thread. Errors name the
/// fields of POST /v1/responses.
ApiResult<PreparedPrompt> prepare_responses(ApiCall& call, const ResponsesPast& past,
                                            const TextCodec& codec, std::uint32_t max_model_len);

/// What POST /v1/responses/input_tokens says: the tokens of that prompt, also where they are more
/// than the context has room for; errors otherwise as prepare_responses.
ApiResult<std::string> count_input_tokens(ApiCall& call, const ResponsesPast& past,
                                          const TextCodec& codec, std::uint32_t max_model_len);

/// `rendered` with `line` in front where its text begins with the line's and a token of its ends
/// there; nothing otherwise.
std::optional<std::vector<TokenId>> put_on_line(std::span<const TokenId> line,
                                                std::span<const TokenId> rendered,
                                                const TextCodec& codec);

}  // namespace thaw::coalescer
