#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "coalescer/core/session_state.h"
#include "coalescer/openai/call.h"
#include "coalescer/openai/session_call.h"
#include "coalescer/openai/text_codec.h"

namespace thaw::coalescer {

/// One turn of a session before it is generated.
struct SessionTurn {
  std::vector<TokenId> prompt;
  std::size_t common_tokens = 0;  ///< of the prompt and the session's line
  SessionState next;  ///< the session with the new messages, without the prompt's tokens
  bool continues_reply = false;  ///< what is generated goes on the last message
};

/// A generated reply as its client reads it.
struct ReplyText {
  std::string text;
  std::size_t num_tokens = 0;  ///< tokens that the text stands for; those of a stop string are not
};

/// The prompt of a turn with the call's messages: everything rendered anew, or (`call.append`) the
/// session's ids and what the template writes behind them. Slow for long ones; any thread. Errors
/// name `messages` or `append`.
ApiResult<SessionTurn> prepare_turn(const ApiCall& call, const SessionState& state,
                                    const TextCodec& codec);

/// The session after the turn: with the reply, its tokens and its text. `generated` is what the
/// request gave for choice `choice`, stop strings included, without a stop token. Calls in the
/// reply become `tool_calls` of its message, thinking `reasoning_content`.
SharedState finish_turn(SessionTurn turn, std::span<const TokenId> generated, const ApiCall& call,
                        const TextCodec& codec, std::uint32_t choice = 0);

/// A turn that began without a session, so that one can be made of it.
SessionTurn turn_of_chat(const ChatPrompt& chat, std::vector<TokenId> prompt);

/// Text of generated tokens up to a stop string of the call, and the tokens before that.
ReplyText read_reply(std::span<const TokenId> generated, const ApiCall& call,
                     const TextCodec& codec);

/// A state of messages that were rendered, without a call for a reply. Errors: what the template
/// refuses; more tokens than the context has.
ApiResult<SharedState> state_of_messages(const ChatPrompt& prompt, const TextCodec& codec,
                                         std::uint32_t max_model_len);

/// What the session is after a cut; messages that were never a line of their own are rendered. Any
/// thread. Errors name the cut's field, which `prefix` stands before.
ApiResult<SharedState> cut_session(const SharedState& state, const SessionCut& cut,
                                   const std::string& prefix, const TextCodec& codec);

/// The chat prompt of the state's messages, with the call for a reply.
ChatPrompt chat_prompt_of(const SessionState& state);

}  // namespace thaw::coalescer
