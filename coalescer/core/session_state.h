#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/base/types.h"

namespace thaw::coalescer {

/// What stands at the end of a token line, and so what may be written behind it.
enum class LineEnd : std::uint8_t {
  kMessage,  ///< the last message as the template renders it, its end included
  kPrompted,  ///< the template's call for a reply, and nothing of the reply
  kReply,  ///< the last message, an assistant's as it was generated: its end is not written yet
  kInside,  ///< a piece of something the template wrote or a client sent
};

/// Behind `tokens` tokens of the line the conversation had `messages` messages.
struct SessionMark {
  std::uint32_t tokens = 0;
  std::uint32_t messages = 0;
  LineEnd end = LineEnd::kMessage;

  bool operator==(const SessionMark&) const = default;
};

/// One point of a conversation: the ids that the model read and wrote, and the messages they stand
/// for. Immutable once it is shared: sessions, their children and their checkpoints point at the
/// same state, so that a fork or a checkpoint copies nothing.
struct SessionState {
  std::vector<TokenId> tokens;
  std::vector<std::string> messages;  ///< one JSON object each
  std::vector<SessionMark> marks;  ///< ascending tokens; the last one describes the whole line
  std::string tools;  ///< JSON list; empty: none
  std::string template_kwargs;  ///< JSON object; empty: none

  LineEnd end() const { return marks.empty() ? LineEnd::kInside : marks.back().end; }
  /// What it takes in memory, about.
  std::size_t size_bytes() const;
};

using SharedState = std::shared_ptr<const SessionState>;

/// What is left of a state. Where the cut lies inside a generated reply, `partial_reply` are the
/// reply's tokens up to there (a view of the old state's): the caller makes the last message of
/// their text, which `state` has a mark for and lacks.
struct TokenCut {
  SessionState state;
  std::span<const TokenId> partial_reply;
};

/// The first `tokens` tokens with the messages that are whole there.
/// REQUIRES: tokens <= state.tokens.size().
TokenCut cut_at_token(const SessionState& state, std::uint32_t tokens);

/// The mark where the line had exactly `messages` messages and each was complete; nullopt where
/// only rendering can tell.
std::optional<SessionMark> mark_of_messages(const SessionState& state, std::uint32_t messages);

/// Marks of `old` that still hold for a line whose first `common_tokens` tokens are the same.
std::vector<SessionMark> marks_within(const SessionState& old, std::size_t common_tokens);

}  // namespace thaw::coalescer
