#include "coalescer/core/session_state.h"

#include <algorithm>

namespace thaw::coalescer {

std::size_t SessionState::size_bytes() const {
  std::size_t bytes = sizeof(SessionState) + tokens.size() * sizeof(TokenId) +
                      marks.size() * sizeof(SessionMark) + tools.size() + template_kwargs.size();
  for (const std::string& message : messages)
    bytes += sizeof(std::string) + message.size();
  return bytes;
}

std::vector<SessionMark> marks_within(const SessionState& old, std::size_t common_tokens) {
  std::vector<SessionMark> kept;
  for (const SessionMark& mark : old.marks)
    if (mark.tokens <= common_tokens) kept.push_back(mark);
  return kept;
}

TokenCut cut_at_token(const SessionState& state, std::uint32_t tokens) {
  TokenCut cut;
  SessionState& left = cut.state;
  left.tokens.assign(state.tokens.begin(), state.tokens.begin() + tokens);
  left.tools = state.tools;
  left.template_kwargs = state.template_kwargs;
  left.marks = marks_within(state, tokens);
  const SessionMark last =
      left.marks.empty() ? SessionMark{0, 0, LineEnd::kInside} : left.marks.back();
  left.messages.assign(state.messages.begin(), state.messages.begin() + last.messages);
  if (!left.marks.empty() && last.tokens == tokens) return cut;

  const auto next = state.marks.begin() + static_cast<std::ptrdiff_t>(left.marks.size());
  const bool in_reply = last.end == LineEnd::kPrompted && next != state.marks.end() &&
                        next->end == LineEnd::kReply && next->messages == last.messages + 1;
  if (!in_reply) {
    left.marks.push_back({tokens, last.messages, LineEnd::kInside});
    return cut;
  }
  left.marks.push_back({tokens, last.messages + 1, LineEnd::kReply});
  cut.partial_reply =
      std::span<const TokenId>(state.tokens).subspan(last.tokens, tokens - last.tokens);
  return cut;
}

std::optional<SessionMark> mark_of_messages(const SessionState& state, std::uint32_t messages) {
  std::optional<SessionMark> found;
  for (const SessionMark& mark : state.marks)
    if (mark.messages == messages && (mark.end == LineEnd::kMessage || mark.end == LineEnd::kReply))
      found = mark;
  return found;
}

}  // namespace thaw::coalescer
