// Turns of sessions: what their prompts are, and what the session is afterwards.

#include <memory>
#include <string>
#include <variant>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "coalescer/openai/session_document.h"
#include "coalescer/openai/session_turn.h"
#include "tests/coalescer/http_fakes.h"

namespace thaw::coalescer {
namespace {

using nlohmann::json;

const ByteCodec kCodec;

std::string text_of(const std::vector<TokenId>& tokens) {
  return kCodec.decode(tokens, /*keep_special=*/true);
}

ApiCall turn_call(const std::string& messages, bool append = false, const std::string& more = "") {
  auto parsed = parse_call(ApiKind::kChat,
                           R"({"session_id": "x", "messages": )" + messages +
                               (append ? R"(, "append": true)" : "") + more + "}",
                           {64, 258, nullptr});
  if (const auto* error = std::get_if<ApiError>(&parsed)) throw std::runtime_error(error->message);
  return std::get<ApiCall>(std::move(parsed));
}

std::string user(const std::string& text) {
  return R"([{"role": "user", "content": ")" + text + R"("}])";
}

SharedState started(const std::string& messages) {
  const ApiCall call = turn_call(messages);
  ChatPrompt chat = std::get<ChatPrompt>(call.prompts.front());
  chat.add_generation_prompt = false;
  return std::get<SharedState>(state_of_messages(chat, kCodec, 1024));
}

SessionTurn prepared(const ApiCall& call, const SharedState& state) {
  auto turn = prepare_turn(call, *state, kCodec);
  if (const auto* error = std::get_if<ApiError>(&turn)) throw std::runtime_error(error->message);
  return std::get<SessionTurn>(std::move(turn));
}

/// One turn whose reply is `reply`.
SharedState after(const SharedState& state, const ApiCall& call, const std::string& reply) {
  return finish_turn(prepared(call, state), byte_tokens(reply), call, kCodec);
}

SharedState cut_at(const SharedState& state, const SessionCut& cut) {
  auto left = cut_session(state, cut, "cut.", kCodec);
  if (const auto* error = std::get_if<ApiError>(&left)) throw std::runtime_error(error->message);
  return std::get<SharedState>(left);
}

std::string content(const SharedState& state, std::size_t message) {
  return json::parse(state->messages.at(message))["content"];
}

TEST(SessionTurn, RendersAllMessagesAndReusesWhatIsCommon) {
  SharedState state = after(started(user("Hi")), turn_call("[]"), "Hello");
  EXPECT_EQ(text_of(state->tokens), "user: Hi\nassistant:Hello");
  EXPECT_EQ(content(state, 1), "Hello");
  const SessionTurn turn = prepared(turn_call(user("More")), state);
  EXPECT_EQ(text_of(turn.prompt), "user: Hi\nassistant:Hello\nuser: More\nassistant:");
  EXPECT_EQ(turn.common_tokens, state->tokens.size());
}

TEST(SessionTurn, ATemplateMayDropOldThoughts) {
  const SharedState state = after(started(user("Hi")), turn_call("[]"), "<t>hm</t>Hello");
  EXPECT_EQ(content(state, 1), "<t>hm</t>Hello");
  const SessionTurn rendered = prepared(turn_call(user("More")), state);
  EXPECT_EQ(text_of(rendered.prompt), "user: Hi\nassistant:Hello\nuser: More\nassistant:");
  EXPECT_EQ(rendered.common_tokens, std::string("user: Hi\nassistant:").size());
  const SessionTurn appended = prepared(turn_call(user("More"), true), state);
  EXPECT_EQ(text_of(appended.prompt), "user: Hi\nassistant:<t>hm</t>Hello\nuser: More\nassistant:");
  EXPECT_EQ(appended.common_tokens, state->tokens.size());
  // Marks behind what the new line shares are gone.
  const ApiCall call = turn_call(user("More"));
  const SharedState next = after(state, call, "!");
  EXPECT_EQ(next->marks.front().tokens, 9U);
  EXPECT_EQ(next->marks[1], (SessionMark{19, 1, LineEnd::kPrompted}));
  EXPECT_EQ(next->marks[2].messages, 3U);
}

TEST(SessionTurn, AppendGoesBehindARenderedMessageToo) {
  const SharedState state = started(user("Hi"));
  EXPECT_EQ(text_of(prepared(turn_call("[]", true), state).prompt), "user: Hi\nassistant:");
  EXPECT_EQ(text_of(prepared(turn_call(user("More"), true), state).prompt),
            "user: Hi\nuser: More\nassistant:");
}

TEST(SessionTurn, AReplyGoesOn) {
  const SharedState state = after(started(user("Hi")), turn_call("[]"), "Hel");
  const ApiCall call = turn_call("[]", true);
  const SessionTurn turn = prepared(call, state);
  EXPECT_EQ(turn.prompt, state->tokens);
  EXPECT_TRUE(turn.continues_reply);
  const SharedState next = after(state, call, "lo");
  EXPECT_EQ(next->messages.size(), 2U);
  EXPECT_EQ(content(next, 1), "Hello");
  EXPECT_EQ(text_of(next->tokens), "user: Hi\nassistant:Hello");
  EXPECT_EQ(next->marks.back(), (SessionMark{24, 2, LineEnd::kReply}));
  EXPECT_EQ(next->marks.size(), 3U);
}

TEST(SessionTurn, ACharacterMayLieAcrossTheSeam) {
  const ApiCall call = turn_call("[]", true);
  const SharedState half = after(started(user("Hi")), turn_call("[]"), "\xc3");
  const SharedState whole = after(half, call, "\xa9");
  EXPECT_EQ(content(whole, 1), "é");
}

TEST(SessionTurn, ReplaceTakesTheMessagesForAll) {
  const SharedState state = after(started(user("Hi")), turn_call("[]"), "Hello");
  const ApiCall call = turn_call(
      R"([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hell"},
          {"role": "user", "content": "x"}])",
      false, R"(, "replace": true)");
  const SessionTurn turn = prepared(call, state);
  EXPECT_EQ(text_of(turn.prompt), "user: Hi\nassistant:Hell\nuser: x\nassistant:");
  EXPECT_EQ(turn.common_tokens, std::string("user: Hi\nassistant:Hell").size());
  EXPECT_EQ(after(state, call, "y")->messages.size(), 4U);
}

TEST(SessionTurn, StopStringsAreNoPartOfTheSession) {
  const ApiCall call = turn_call("[]", false, R"(, "stop": "END")");
  const SharedState state = after(started(user("Hi")), call, "Hello ENDx");
  EXPECT_EQ(content(state, 1), "Hello ");
  EXPECT_EQ(text_of(state->tokens), "user: Hi\nassistant:Hello ");
  const ApiCall later = turn_call("[]", false, R"(, "stop": "l", "min_tokens": 5)");
  EXPECT_EQ(content(after(started(user("Hi")), later, "Hello all"), 1), "Hello a");
}

TEST(SessionTurn, AStopStringMayBeginInsideOfTokens) {
  // A byte is a token here: "è" and "é" begin with the same one.
  const ApiCall call = turn_call("[]", false, R"(, "stop": "é")");
  const SharedState state = after(started(user("Hi")), call, "aèbé");
  EXPECT_EQ(content(state, 1), "aèb");
  EXPECT_EQ(text_of(state->tokens), "user: Hi\nassistant:aèb");
}

TEST(SessionTurn, ACallThatAStopStringCutOffStaysAsItIs) {
  ApiCall call = turn_call("[]", false, R"(, "stop": "Bo")");
  ToolSpec tool;
  tool.name = "f";
  call.reply.tools = std::make_shared<const std::vector<ToolSpec>>(1, tool);
  call.reply.grammar = "{}";
  const SharedState state =
      after(started(user("Hi")), call, R"(<tool_call>{"name": "f", "arguments": {"city": "Bo)");
  const json function = json::parse(state->messages.at(1))["tool_calls"][0]["function"];
  EXPECT_EQ(function["name"], "f");
  EXPECT_EQ(function["arguments"], R"({"city": ")");
}

TEST(SessionTurn, ToolsOfTheSessionStay) {
  const ApiCall first = turn_call(user("a"), false, R"(, "tools": [{"function": {"name": "f"}}])");
  SharedState state = after(std::make_shared<SessionState>(), first, "b");
  EXPECT_EQ(text_of(prepared(turn_call(user("c")), state).prompt),
            "user: a\nassistant:b\nuser: c\ntools: [{\"function\":{\"name\":\"f\"}}]\nassistant:");
  EXPECT_EQ(
      text_of(prepared(turn_call(user("c"), false, R"(, "tool_choice": "none")"), state).prompt),
      "user: a\nassistant:b\nuser: c\nassistant:");
  EXPECT_EQ(text_of(prepared(turn_call(user("c"), false, R"(, "tools": [])"), state).prompt),
            "user: a\nassistant:b\nuser: c\nassistant:");
  state = after(state, turn_call(user("c"), false, R"(, "tool_choice": "none")"), "d");
  EXPECT_EQ(state->tools, R"([{"function":{"name":"f"}}])");
}

TEST(SessionCut, AtMessagesIsWhatFewerMessagesWouldHaveBeen) {
  SharedState state = after(started(user("Hi")), turn_call("[]"), "Hello");
  state = after(state, turn_call(user("More")), "Yes");
  ASSERT_EQ(state->messages.size(), 4U);
  for (std::uint32_t count = 1; count <= 4; ++count) {
    const SharedState left = cut_at(state, {std::nullopt, count});
    EXPECT_EQ(left->messages.size(), count);
    EXPECT_EQ(left->marks.back().messages, count);
    EXPECT_EQ(left->marks.back().tokens, left->tokens.size());
    // The next turn is the one of a session that never went further.
    SessionState fresh;
    fresh.messages.assign(state->messages.begin(), state->messages.begin() + count);
    const ApiCall call = turn_call(user("Next"));
    EXPECT_EQ(prepared(call, left).prompt,
              prepared(call, std::make_shared<const SessionState>(fresh)).prompt);
  }
  EXPECT_EQ(text_of(cut_at(state, {std::nullopt, 2})->tokens), "user: Hi\nassistant:Hello");
  EXPECT_EQ(text_of(cut_at(state, {std::nullopt, 3})->tokens),
            "user: Hi\nassistant:Hello\nuser: More\n");
}

TEST(SessionCut, InsideAReplyKeepsItsText) {
  const SharedState state = after(started(user("Hi")), turn_call("[]"), "Hello");
  const SharedState left = cut_at(state, {22, std::nullopt});
  EXPECT_EQ(text_of(left->tokens), "user: Hi\nassistant:Hel");
  EXPECT_EQ(content(left, 1), "Hel");
  EXPECT_EQ(text_of(prepared(turn_call("[]", true), left).prompt), "user: Hi\nassistant:Hel");
  EXPECT_EQ(text_of(prepared(turn_call(user("x"), true), left).prompt),
            "user: Hi\nassistant:Hel\nuser: x\nassistant:");
  const SharedState again = cut_at(left, {20, std::nullopt});
  EXPECT_EQ(content(again, 1), "H");
}

TEST(SessionCut, InsideAMessageRefusesAppend) {
  const SharedState state = started(user("Hi"));
  const SharedState left = cut_at(state, {3, std::nullopt});
  EXPECT_TRUE(left->messages.empty());
  const auto turn = prepare_turn(turn_call(user("x"), true), *left, kCodec);
  ASSERT_TRUE(std::holds_alternative<ApiError>(turn));
  EXPECT_EQ(std::get<ApiError>(turn).param, "append");
}

TEST(SessionCut, BeyondTheEndIsNamed) {
  const SharedState state = started(user("Hi"));
  for (const SessionCut& cut : {SessionCut{10, std::nullopt}, SessionCut{std::nullopt, 2}}) {
    const auto left = cut_session(state, cut, "cut.", kCodec);
    ASSERT_TRUE(std::holds_alternative<ApiError>(left));
    EXPECT_EQ(std::get<ApiError>(left).param, cut.tokens ? "cut.tokens" : "cut.messages");
  }
}

StoredSession written_session() {
  StoredSession session;
  session.id = std::string(32, 'a');
  session.tenant = "anna";
  session.label = "x\"y";
  session.cache_salt = "salt";
  session.vocab_size = 258;
  session.ttl = std::chrono::seconds(77);
  session.created = 1234;
  session.turns = 2;
  SharedState state = after(started(user("Hi")), turn_call("[]"), "Hello");
  session.checkpoints.push_back({"one", state, 1235});
  state = after(
      state, turn_call(user("More"), false, R"(, "tools": [{"function": {"name": "f"}}])"), "Yes");
  session.checkpoints.push_back({"two", state, 1236});
  session.state = state;
  return session;
}

LimitsOf limits(DocumentLimits fixed) {
  return [fixed](const std::string&, const std::string&) { return fixed; };
}

TEST(SessionDocument, ASaltThatNoTurnCouldHaveIsRefused) {
  StoredSession session = written_session();
  session.cache_salt = std::string(1025, 's');
  const auto read =
      read_session_document(write_session_document({session, 5000, "print"}), limits({258, 1024}));
  ASSERT_TRUE(std::holds_alternative<ApiError>(read));
  EXPECT_EQ(std::get<ApiError>(read).param, "cache_salt");
}

TEST(SessionDocument, ReadsWhatItWrote) {
  const StoredSession session = written_session();
  const std::string text = write_session_document({session, 5000, "print"});
  const auto read = read_session_document(text, limits({258, 1024}));
  ASSERT_TRUE(std::holds_alternative<SessionDocument>(read)) << std::get<ApiError>(read).message;
  const auto& document = std::get<SessionDocument>(read);
  const StoredSession& back = document.session;
  EXPECT_EQ(document.expires_at, 5000);
  EXPECT_EQ(document.system_fingerprint, "print");
  EXPECT_EQ(back.id, session.id);
  EXPECT_EQ(back.tenant, "anna");
  EXPECT_EQ(back.label, "x\"y");
  EXPECT_EQ(back.ttl, session.ttl);
  EXPECT_EQ(back.turns, 2U);
  EXPECT_EQ(back.state->tokens, session.state->tokens);
  EXPECT_EQ(back.state->messages, session.state->messages);
  EXPECT_EQ(back.state->marks, session.state->marks);
  EXPECT_EQ(back.state->tools, session.state->tools);
  ASSERT_EQ(back.checkpoints.size(), 2U);
  EXPECT_EQ(back.checkpoints[0].state->tokens, session.checkpoints[0].state->tokens);
  EXPECT_EQ(back.checkpoints[1].state, back.state);
  EXPECT_EQ(write_session_document(document), text);
}

TEST(SessionDocument, ItsModelDecidesWhatItMustFit) {
  StoredSession session = written_session();
  session.model = "alias";
  session.weights = "abc";
  const std::string text = write_session_document({session, 5000, ""});
  std::string asked;
  const auto read =
      read_session_document(text, [&](const std::string& weights, const std::string& model) {
        asked = weights + " " + model;
        return DocumentLimits{258, 1024};
      });
  ASSERT_TRUE(std::holds_alternative<SessionDocument>(read));
  EXPECT_EQ(asked, "abc alias");
  EXPECT_EQ(std::get<SessionDocument>(read).session.weights, "abc");
  EXPECT_EQ(std::get<SessionDocument>(read).session.vocab_size, 258);
  // Files that older versions wrote name no weights.
  json older = json::parse(text);
  older.erase("weights");
  EXPECT_TRUE(std::holds_alternative<SessionDocument>(
      read_session_document(older.dump(), limits({258, 1024}))));
}

TEST(SessionDocument, EveryLieIsNamed) {
  const std::string text = write_session_document({written_session(), 5000, ""});
  const auto refused = [&](const char* pointer, const json& value, const std::string& param) {
    json document = json::parse(text);
    document[json::json_pointer(pointer)] = value;
    const auto read = read_session_document(document.dump(), limits({258, 1024}));
    ASSERT_TRUE(std::holds_alternative<ApiError>(read)) << pointer;
    EXPECT_EQ(std::get<ApiError>(read).param, param);
    EXPECT_EQ(std::get<ApiError>(read).status, 400);
  };
  refused("/format", "tape", "format");
  refused("/version", 2, "format");
  refused("/vocab_size", 259, "vocab_size");
  refused("/weights", 7, "weights");
  refused("/weights", std::string(5000, 'w'), "weights");
  refused("/id", "../../etc/passwd", "id");
  refused("/ttl_seconds", -5, "ttl_seconds");
  refused("/states", json::array(), "states");
  refused("/states/0/tokens/3", 258, "states[0].tokens");
  refused("/states/0/tokens", json::array(), "states[0].tokens");
  refused("/states/1/common_tokens", 5000, "states[1].common_tokens");
  refused("/states/0/messages/0", "x", "states[0].messages[0]");
  refused("/states/0/tokens", nullptr, "states[0].tokens");
  refused("/states/0/marks", json::array(), "states[0].marks");
  refused("/states/0/marks", nullptr, "states[0].marks");
  refused("/states/0/marks/0/tokens", 999, "states[0].marks[0].tokens");
  refused("/states/0/marks/0/messages", 99, "states[0].marks[0].messages");
  refused("/states/0/marks/1/tokens", 0, "states[0].marks[1]");
  refused("/states/0/marks/0/end", "nowhere", "states[0].marks[0].end");
  refused("/checkpoints/1/name", "one", "checkpoints[1]");
  refused("/checkpoints/0/state", 7, "checkpoints[0].state");
  const auto too_long = read_session_document(text, limits({258, 10}));
  ASSERT_TRUE(std::holds_alternative<ApiError>(too_long));
  EXPECT_EQ(std::get<ApiError>(too_long).param, "states[0].tokens");
}

TEST(SessionDocument, CutAnywhereIsRefused) {
  const std::string text = write_session_document({written_session(), 5000, ""});
  for (std::size_t length = 0; length < text.size(); ++length) {
    const auto read = read_session_document(text.substr(0, length), limits({258, 1024}));
    ASSERT_TRUE(std::holds_alternative<ApiError>(read)) << length;
  }
}

}  // namespace
}  // namespace thaw::coalescer
