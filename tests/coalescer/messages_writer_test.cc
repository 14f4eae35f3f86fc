// Answers of POST /v1/messages: whole ones, and the events of streams.

#include "coalescer/openai/messages_writer.h"

#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "coalescer/openai/messages_error.h"
#include "tests/coalescer/writer_parts.h"

namespace thaw::coalescer {
namespace {

using nlohmann::json;

ApiCall call_with(std::uint32_t max_tokens) {
  ApiCall call;
  call.kind = ApiKind::kMessages;
  call.max_tokens = max_tokens;
  return call;
}

CompletionUsage usage_of(std::uint64_t prompt, std::uint64_t cached, std::uint64_t completion) {
  CompletionUsage usage;
  usage.prompt_tokens = prompt;
  usage.cached_tokens = cached;
  usage.completion_tokens = completion;
  return usage;
}

/// Thinking, text, a call with arguments, another that was cut off.
const ReplyPieces& reply() {
  static const ReplyPieces pieces = {
      piece(PieceKind::kReasoning, "Hm."),
      piece(PieceKind::kContent, "I \"look\"."),
      piece(PieceKind::kCallStart, "weather"),
      piece(PieceKind::kArguments, R"({"city": "Bonn", "days": 1.50})"),
      piece(PieceKind::kCallEnd, ""),
      piece(PieceKind::kCallStart, "time", 1),
      piece(PieceKind::kArguments, R"({"zone": "C)", 1)};
  return pieces;
}

json body_of(const ReplyPieces& pieces, const ChoiceEnd& end, const CompletionUsage& usage,
             std::uint32_t max_tokens = 9, const std::string& explanation = "") {
  MessagesWriter writer(call_with(max_tokens), label());
  WholeChoice choice;
  choice.pieces = pieces;
  choice.end = end;
  return json::parse(writer.body({choice}, usage, explanation));
}

TEST(MessagesWriter, AWholeAnswerHasItsBlocksInOrder) {
  const json body = body_of(reply(), {"tool_calls", std::nullopt, std::nullopt}, usage_of(10, 4, 5),
                            9, R"({"request":1})");
  EXPECT_EQ(body["id"], "id-1");
  EXPECT_EQ(body["type"], "message");
  EXPECT_EQ(body["role"], "assistant");
  EXPECT_EQ(body["model"], "model \"quoted\"");
  EXPECT_EQ(body["stop_reason"], "tool_use");
  EXPECT_TRUE(body["stop_sequence"].is_null());
  EXPECT_EQ(body["thaw"]["request"], 1);
  const json& content = body["content"];
  ASSERT_EQ(content.size(), 4U);
  EXPECT_EQ(content[0]["type"], "thinking");
  EXPECT_EQ(content[0]["thinking"], "Hm.");
  EXPECT_FALSE(content[0]["signature"].get<std::string>().empty());
  EXPECT_EQ(content[1], json::parse(R"({"type": "text", "text": "I \"look\"."})"));
  EXPECT_EQ(content[2], json::parse(R"({"type": "tool_use", "id": "call_0", "name": "weather",
                                        "input": {"city": "Bonn", "days": 1.5}})"));
  EXPECT_EQ(content[3]["input"], json::object());
  EXPECT_EQ(content[3]["partial_json"], R"({"zone": "C)");
}

TEST(MessagesWriter, EveryEndHasItsReason) {
  const auto reason = [](const ChoiceEnd& end, std::uint64_t completion) {
    return body_of({}, end, usage_of(1, 0, completion))["stop_reason"].get<std::string>();
  };
  EXPECT_EQ(reason({"stop", 2, std::nullopt}, 3), "end_turn");
  EXPECT_EQ(reason({"stop", std::nullopt, "END"}, 3), "stop_sequence");
  EXPECT_EQ(reason({"length", std::nullopt, std::nullopt}, 9), "max_tokens");
  EXPECT_EQ(reason({"length", std::nullopt, std::nullopt}, 8), "model_context_window_exceeded");
  EXPECT_EQ(reason({"tool_calls", std::nullopt, "END"}, 3), "tool_use");
  EXPECT_EQ(body_of({}, {"stop", std::nullopt, "END"}, usage_of(1, 0, 3))["stop_sequence"], "END");
  EXPECT_TRUE(body_of({}, {}, usage_of(1, 0, 3))["content"].empty());
}

TEST(MessagesWriter, InputTokensAreThoseThatNoCacheHad) {
  CompletionUsage usage = usage_of(100, 30, 7);
  json shown = body_of({}, {}, usage)["usage"];
  EXPECT_EQ(shown["input_tokens"], 70);
  EXPECT_EQ(shown["cache_read_input_tokens"], 30);
  EXPECT_EQ(shown["cache_creation_input_tokens"], 0);
  EXPECT_EQ(shown["output_tokens"], 7);
  usage.kept_tokens = 80;
  shown = body_of({}, {}, usage)["usage"];
  EXPECT_EQ(shown["input_tokens"], 20);
  EXPECT_EQ(shown["cache_creation_input_tokens"], 50);
  EXPECT_EQ(shown["cache_creation"]["ephemeral_5m_input_tokens"], 50);
  usage.kept_tokens = 20;  // all of it was there already
  EXPECT_EQ(body_of({}, {}, usage)["usage"]["cache_creation_input_tokens"], 0);
}

TEST(MessagesWriter, AStreamSaysWhatTheWholeAnswerDoes) {
  // Pieces cut in any way.
  for (const std::size_t cut : {1U, 3U, 100U}) {
    MessagesWriter writer(call_with(9), label());
    std::string out;
    writer.append_start(out, 10);
    for (const ReplyPiece& whole : reply()) {
      for (std::size_t at = 0; at == 0 || at < whole.text.size(); at += cut) {
        ReplyPiece part = whole;
        const bool divides = whole.kind != PieceKind::kCallStart;
        if (divides) part.text = whole.text.substr(at, cut);
        Delta delta;
        delta.pieces = {part};
        writer.append_delta(out, delta);
        if (!divides) break;
      }
    }
    Delta last;
    last.end = ChoiceEnd{"tool_calls", std::nullopt, std::nullopt};
    writer.append_delta(out, last);
    writer.append_end(out, usage_of(10, 4, 5), R"({"request":1})");
    writer.append_done(out);
    const std::vector<json> events = events_of(out);
    EXPECT_EQ(events[0]["message"]["usage"]["input_tokens"], 10);
    EXPECT_EQ(events[1]["type"], "ping");
    json content = json::array();
    std::vector<std::string> inputs;
    bool open = false;
    for (const json& event : events) {
      if (event["type"] == "content_block_start") {
        EXPECT_FALSE(open);
        EXPECT_EQ(event["index"], content.size());
        open = true;
        content.push_back(event["content_block"]);
        inputs.emplace_back();
      } else if (event["type"] == "content_block_delta") {
        EXPECT_TRUE(open);
        EXPECT_EQ(event["index"], content.size() - 1);
        const json& delta = event["delta"];
        json& block = content.back();
        if (delta["type"] == "text_delta")
          block["text"] = block["text"].get<std::string>() + delta["text"].get<std::string>();
        else if (delta["type"] == "thinking_delta")
          block["thinking"] =
              block["thinking"].get<std::string>() + delta["thinking"].get<std::string>();
        else if (delta["type"] == "signature_delta")
          block["signature"] = delta["signature"];
        else
          inputs.back() += delta.at("partial_json").get<std::string>();
      } else if (event["type"] == "content_block_stop") {
        EXPECT_TRUE(open);
        open = false;
      }
    }
    EXPECT_FALSE(open);
    json whole = body_of(reply(), {"tool_calls", std::nullopt, std::nullopt}, usage_of(10, 4, 5));
    content[2]["input"] = json::parse(inputs[2]);
    EXPECT_EQ(whole["content"][3]["partial_json"], inputs[3]);
    whole["content"][3].erase("partial_json");
    EXPECT_EQ(content, whole["content"]);
    const json& end = events[events.size() - 2];
    EXPECT_EQ(end["type"], "message_delta");
    EXPECT_EQ(end["delta"]["stop_reason"], whole["stop_reason"]);
    EXPECT_EQ(end["usage"], whole["usage"]);
    EXPECT_EQ(end["thaw"]["request"], 1);
    EXPECT_EQ(events.back()["type"], "message_stop");
  }
}

TEST(MessagesWriter, ErrorsAreTypedByTheirStatus) {
  const std::pair<int, const char*> types[] = {
      {400, "invalid_request_error"}, {401, "authentication_error"},
      {403, "permission_error"},      {404, "not_found_error"},
      {405, "invalid_request_error"}, {413, "request_too_large"},
      {429, "rate_limit_error"},      {500, "api_error"},
      {503, "overloaded_error"},      {504, "timeout_error"}};
  for (const auto& [status, type] : types) {
    ApiError error = invalid_field("top_k", "no \"good\"", "a_code");
    error.status = status;
    const json body = json::parse(message_error_body(error, "req-1"));
    EXPECT_EQ(body["type"], "error");
    EXPECT_EQ(body["error"]["type"], type) << status;
    EXPECT_EQ(body["error"]["message"], "no \"good\"");
    EXPECT_EQ(body["error"]["details"]["error_code"], "a_code");
    EXPECT_EQ(body["error"]["details"]["param"], "top_k");
    EXPECT_EQ(body["request_id"], "req-1");
  }
  MessagesWriter writer(call_with(9), label());
  std::string out;
  writer.append_error(out, invalid_field("", "broken"));
  const std::vector<json> events = events_of(out);
  ASSERT_EQ(events.size(), 1U);
  EXPECT_EQ(events[0]["error"]["message"], "broken");
}

}  // namespace
}  // namespace thaw::coalescer
