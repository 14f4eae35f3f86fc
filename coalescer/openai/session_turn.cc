#include "coalescer/openai/session_turn.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "coalescer/core/token_trie.h"
#include "coalescer/openai/json_text.h"
#include "coalescer/openai/message_json.h"
#include "coalescer/openai/stop_matcher.h"

namespace thaw::coalescer {
namespace {

using nlohmann::ordered_json;

std::string assistant_message(const std::string& content) {
  return dump_json({{"role", "assistant"}, {"content", content}});
}

/// The text of tokens in the middle of a line.
std::string text_of(std::span<const TokenId> tokens, bool keep_special, const TextCodec& codec) {
  const auto stream = codec.new_stream(keep_special);
  std::string text;
  for (const TokenId token : tokens)
    text += stream->push(token);
  return text + stream->finish();
}

/// The message that the text of a reply stands for.
ordered_json message_of_reply(const std::string& text, const ApiCall& call, const TextCodec& codec,
                              std::uint32_t choice) {
  ReplyParser parser(reply_reading(call.reply, choice, codec));
  ReplyPieces pieces = parser.push(text);
  append_pieces(pieces, parser.finish());
  return message_of_pieces(pieces);
}

/// Marks of a line; the last one describes all of it.
void mark_end(SessionState& state, LineEnd end) {
  const auto tokens = static_cast<std::uint32_t>(state.tokens.size());
  const auto messages = static_cast<std::uint32_t>(state.messages.size());
  state.marks.push_back({tokens, messages, end});
}

ApiError cannot_append(std::string message) {
  return unsupported_field("append", std::move(message));
}

ApiError template_error(const Error& error) {
  ApiError result = to_api_error(error);
  result.param = "messages";
  return result;
}

void set_chat(SessionState& state, const ChatPrompt& prompt) {
  for (const ordered_json& message : prompt.messages)
    state.messages.push_back(dump_json(message));
  if (!prompt.tools.is_null()) state.tools = dump_json(prompt.tools);
  if (!prompt.template_kwargs.empty()) state.template_kwargs = dump_json(prompt.template_kwargs);
}

/// What goes behind the session's ids; `prompt` has all messages, the new ones from `first_new` on.
ApiResult<std::vector<TokenId>> continuation(const ChatPrompt& prompt, std::size_t first_new,
                                             const SessionState& state, const TextCodec& codec) {
  const bool has_new = prompt.messages.size() > first_new;
  // A reply that is not ended, or that was just called for, goes on by itself.
  const LineEnd end = state.end();
  if (!has_new && (end == LineEnd::kReply || end == LineEnd::kPrompted))
    return std::vector<TokenId>();
  if (first_new == 0 || end == LineEnd::kInside || end == LineEnd::kPrompted) {
    return cannot_append("`append` is true, but the session ends at token " +
                         std::to_string(state.tokens.size()) +
                         ", which is no end of a message; cut it elsewhere, or leave `append` out");
  }
  auto tail = codec.encode_after(prompt, first_new - 1);
  if (!tail) return template_error(tail.error());
  if (end == LineEnd::kReply) return std::move(*tail);
  // The line has the last message's end already.
  ChatPrompt without_new = prompt;
  without_new.messages.erase(without_new.messages.begin() + static_cast<std::ptrdiff_t>(first_new),
                             without_new.messages.end());
  without_new.add_generation_prompt = false;
  const auto ending = codec.encode_after(without_new, first_new - 1);
  if (!ending) return template_error(ending.error());
  if (common_prefix(*tail, *ending) != ending->size()) {
    return cannot_append(
        "`append` is true, but this model's chat template writes the session's last message "
        "differently once others follow; leave `append` out");
  }
  tail->erase(tail->begin(), tail->begin() + static_cast<std::ptrdiff_t>(ending->size()));
  return std::move(*tail);
}

}  // namespace

ChatPrompt chat_prompt_of(const SessionState& state) {
  ChatPrompt prompt;
  for (const std::string& message : state.messages)
    prompt.messages.push_back(ordered_json::parse(message));
  if (!state.tools.empty()) prompt.tools = ordered_json::parse(state.tools);
  if (!state.template_kwargs.empty())
    prompt.template_kwargs = ordered_json::parse(state.template_kwargs);
  return prompt;
}

ApiResult<SessionTurn> prepare_turn(const ApiCall& call, const SessionState& state,
                                    const TextCodec& codec) {
  const auto& given = std::get<ChatPrompt>(call.prompts.front());
  SessionTurn turn;
  SessionState& next = turn.next;
  if (!call.replace) next.messages = state.messages;
  const std::size_t first_new = next.messages.size();
  for (const ordered_json& message : given.messages)
    next.messages.push_back(dump_json(message));
  if (next.messages.empty()) {
    return invalid_field("messages",
                         "`messages` is empty and so is the session; there is nothing to reply to");
  }
  next.tools = state.tools;
  if (call.has_tools && !call.hides_tools)
    next.tools = given.tools.is_null() ? "" : dump_json(given.tools);
  next.template_kwargs =
      call.has_template_kwargs ? dump_json(given.template_kwargs) : state.template_kwargs;

  ChatPrompt prompt = chat_prompt_of(next);
  if (call.hides_tools) prompt.tools = nullptr;
  if (call.append) {
    auto tail = continuation(prompt, first_new, state, codec);
    if (auto* error = std::get_if<ApiError>(&tail)) return std::move(*error);
    const auto& ids = std::get<std::vector<TokenId>>(tail);
    turn.prompt = state.tokens;
    turn.prompt.insert(turn.prompt.end(), ids.begin(), ids.end());
    turn.common_tokens = state.tokens.size();
    turn.continues_reply = ids.empty() && state.end() == LineEnd::kReply;
  } else {
    auto rendered = codec.encode_chat(prompt);
    if (!rendered) return template_error(rendered.error());
    turn.prompt = std::move(*rendered);
    turn.common_tokens = common_prefix(turn.prompt, state.tokens);
  }
  if (!call.replace) next.marks = marks_within(state, turn.common_tokens);
  return turn;
}

ReplyText read_reply(std::span<const TokenId> generated, const ApiCall& call,
                     const TextCodec& codec) {
  const auto stream = codec.new_stream(call.keep_special);
  StopMatcher matcher(call.stop);
  HiddenMarkers markers(call, codec);
  ReplyText reply;
  std::vector<std::size_t> ends;  // bytes of text up to each token, held back ones included
  ends.reserve(generated.size());
  std::size_t seen = 0;
  for (std::size_t i = 0; i < generated.size() && !matcher.matched(); ++i) {
    std::string text = stream->push(generated[i]);
    text += markers.text_of(generated[i]);
    seen += text.size();
    // The stop string may begin with the character that the token is a part of.
    ends.push_back(stream->is_inside_character() ? std::string::npos : seen);
    // As in Completion: text of the first min_tokens tokens cannot stop the reply.
    if (i + 1 > call.sampling.min_tokens) text = matcher.push(text);
    reply.text += text;
  }
  if (matcher.matched()) {
    while (!ends.empty() && ends.back() > reply.text.size())
      ends.pop_back();
    reply.num_tokens = ends.size();
    return reply;
  }
  reply.text += matcher.push(stream->finish());
  reply.text += matcher.finish();
  reply.num_tokens = generated.size();
  return reply;
}

SharedState finish_turn(SessionTurn turn, std::span<const TokenId> generated, const ApiCall& call,
                        const TextCodec& codec, std::uint32_t choice) {
  ReplyText reply = read_reply(generated, call, codec);
  generated = generated.subspan(0, reply.num_tokens);
  SessionState& next = turn.next;
  next.tokens = std::move(turn.prompt);
  if (turn.continues_reply) {
    // One reply in two turns: its text is read again from where it began, since a character may
    // lie across the seam.
    std::erase_if(next.marks, [&](const SessionMark& mark) {
      return mark.end == LineEnd::kReply && mark.messages == next.messages.size();
    });
    ordered_json message = ordered_json::parse(next.messages.back());
    if (!next.marks.empty() && next.marks.back().end == LineEnd::kPrompted) {
      std::vector<TokenId> whole(next.tokens.begin() + next.marks.back().tokens, next.tokens.end());
      const std::string before = text_of(whole, call.keep_special, codec);
      whole.insert(whole.end(), generated.begin(), generated.end());
      const std::string text = text_of(whole, call.keep_special, codec);
      const std::string wanted = before + reply.text;
      const ordered_json read =
          message_of_reply(text.size() > wanted.size() ? wanted : text, call, codec, choice);
      for (const auto& [key, value] : read.items())
        message[key] = value;
    } else {
      message["content"] = message["content"].get<std::string>() + reply.text;
    }
    next.messages.back() = dump_json(message);
  } else {
    mark_end(next, LineEnd::kPrompted);
    next.messages.push_back(dump_json(message_of_reply(reply.text, call, codec, choice)));
  }
  next.tokens.insert(next.tokens.end(), generated.begin(), generated.end());
  mark_end(next, LineEnd::kReply);
  return std::make_shared<const SessionState>(std::move(next));
}

SessionTurn turn_of_chat(const ChatPrompt& chat, std::vector<TokenId> prompt) {
  SessionTurn turn;
  turn.prompt = std::move(prompt);
  turn.continues_reply = chat.continue_final_message;
  set_chat(turn.next, chat);
  return turn;
}

ApiResult<SharedState> state_of_messages(const ChatPrompt& prompt, const TextCodec& codec,
                                         std::uint32_t max_model_len) {
  auto rendered = codec.encode_chat(prompt);
  if (!rendered) return template_error(rendered.error());
  if (rendered->empty() || rendered->size() >= max_model_len) {
    return invalid_field("messages",
                         "This model's maximum context length is " + std::to_string(max_model_len) +
                             " tokens. However, the messages have " +
                             std::to_string(rendered->size()) +
                             "; they must leave room for a reply",
                         rendered->empty() ? "" : "context_length_exceeded");
  }
  auto state = std::make_shared<SessionState>();
  state->tokens = std::move(*rendered);
  set_chat(*state, prompt);
  mark_end(*state, LineEnd::kMessage);
  return SharedState(std::move(state));
}

ApiResult<SharedState> cut_session(const SharedState& state, const SessionCut& cut,
                                   const std::string& prefix, const TextCodec& codec) {
  const auto beyond = [&](const std::string& what, std::size_t asked, std::size_t there) {
    return invalid_field(prefix + what, "`" + prefix + what + "` is " + std::to_string(asked) +
                                            "; the session has " + std::to_string(there) + " " +
                                            what);
  };
  if (cut.tokens) {
    if (*cut.tokens > state->tokens.size())
      return beyond("tokens", *cut.tokens, state->tokens.size());
    if (*cut.tokens == state->tokens.size()) return state;
    TokenCut left = cut_at_token(*state, *cut.tokens);
    if (left.state.end() == LineEnd::kReply &&
        left.state.messages.size() < left.state.marks.back().messages) {
      left.state.messages.push_back(
          assistant_message(text_of(left.partial_reply, /*keep_special=*/false, codec)));
    }
    return std::make_shared<const SessionState>(std::move(left.state));
  }
  if (!cut.messages || *cut.messages == state->messages.size()) return state;
  if (*cut.messages > state->messages.size())
    return beyond("messages", *cut.messages, state->messages.size());
  if (const auto mark = mark_of_messages(*state, *cut.messages)) {
    TokenCut left = cut_at_token(*state, mark->tokens);
    // A reply of no tokens leaves two marks at one place.
    while (left.state.marks.back().messages > mark->messages)
      left.state.marks.pop_back();
    left.state.messages.resize(mark->messages);
    return std::make_shared<const SessionState>(std::move(left.state));
  }
  SessionState kept;
  kept.messages.assign(state->messages.begin(), state->messages.begin() + *cut.messages);
  kept.tools = state->tools;
  kept.template_kwargs = state->template_kwargs;
  ChatPrompt prompt = chat_prompt_of(kept);
  prompt.add_generation_prompt = false;
  auto rendered = codec.encode_chat(prompt);
  if (!rendered) {
    ApiError error = to_api_error(rendered.error());
    error.param = prefix + "messages";
    return error;
  }
  kept.tokens = std::move(*rendered);
  kept.marks = marks_within(*state, common_prefix(kept.tokens, state->tokens));
  std::erase_if(kept.marks, [&](const SessionMark& mark) { return mark.messages > *cut.messages; });
  mark_end(kept, LineEnd::kMessage);
  return std::make_shared<const SessionState>(std::move(kept));
}

}  // namespace thaw::coalescer
