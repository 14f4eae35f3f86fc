#include "coalescer/core/session_state.h"

#include <gtest/gtest.h>

namespace thaw::coalescer {
namespace {

/// Ten tokens: a rendered message (4), the call for a reply (2), the reply (4).
SessionState conversation() {
  SessionState state;
  state.tokens = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
  state.messages = {"u", "a"};
  state.marks = {{4, 1, LineEnd::kMessage}, {6, 1, LineEnd::kPrompted}, {10, 2, LineEnd::kReply}};
  state.tools = "[]";
  return state;
}

TEST(SessionState, CutAtTheEndIsTheSame) {
  const SessionState state = conversation();
  const TokenCut cut = cut_at_token(state, 10);
  EXPECT_EQ(cut.state.tokens, state.tokens);
  EXPECT_EQ(cut.state.messages, state.messages);
  EXPECT_EQ(cut.state.marks, state.marks);
  EXPECT_EQ(cut.state.tools, "[]");
  EXPECT_TRUE(cut.partial_reply.empty());
}

TEST(SessionState, CutAtAMarkHasItsEnd) {
  const TokenCut at_message = cut_at_token(conversation(), 4);
  EXPECT_EQ(at_message.state.end(), LineEnd::kMessage);
  EXPECT_EQ(at_message.state.messages.size(), 1U);
  const TokenCut prompted = cut_at_token(conversation(), 6);
  EXPECT_EQ(prompted.state.end(), LineEnd::kPrompted);
  EXPECT_EQ(prompted.state.messages.size(), 1U);
}

TEST(SessionState, CutInsideAReplyGivesItsPart) {
  const SessionState state = conversation();
  const TokenCut cut = cut_at_token(state, 8);
  EXPECT_EQ(cut.state.tokens, (std::vector<TokenId>{0, 1, 2, 3, 4, 5, 6, 7}));
  EXPECT_EQ(std::vector<TokenId>(cut.partial_reply.begin(), cut.partial_reply.end()),
            (std::vector<TokenId>{6, 7}));
  EXPECT_EQ(cut.state.marks.back(), (SessionMark{8, 2, LineEnd::kReply}));
  EXPECT_EQ(cut.state.messages.size(), 1U);  // the caller writes the second
}

TEST(SessionState, CutInsideAnythingElseSaysSo) {
  for (const std::uint32_t tokens : {2U, 5U}) {
    const TokenCut cut = cut_at_token(conversation(), tokens);
    EXPECT_EQ(cut.state.end(), LineEnd::kInside) << tokens;
    EXPECT_TRUE(cut.partial_reply.empty());
    EXPECT_EQ(cut.state.messages.size(), tokens < 4 ? 0U : 1U);
  }
}

TEST(SessionState, MarkOfMessagesIsAWholeMessage) {
  EXPECT_EQ(mark_of_messages(conversation(), 1)->tokens, 4U);  // not behind the call for a reply
  EXPECT_EQ(mark_of_messages(conversation(), 2)->tokens, 10U);
  EXPECT_FALSE(mark_of_messages(conversation(), 3));
}

TEST(SessionState, MarksBehindTheCommonPrefixGo) {
  EXPECT_EQ(marks_within(conversation(), 9).size(), 2U);
  EXPECT_EQ(marks_within(conversation(), 3).size(), 0U);
}

}  // namespace
}  // namespace thaw::coalescer
