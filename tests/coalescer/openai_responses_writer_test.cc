#include <set>
#include <string>
#include <variant>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "coalescer/openai/responses_call.h"
#include "coalescer/openai/responses_writer.h"
#include "tests/coalescer/writer_parts.h"

namespace thaw::coalescer {
namespace {

using nlohmann::json;

constexpr const char* kId = "resp_0123456789abcdef0123456789abcdef";

ApiCall response_call(const std::string& rest = "") {
  auto call = parse_call(ApiKind::kResponses, R"({"input": "q", "stream": true)" + rest + "}",
                         ParseLimits{8, 258, nullptr});
  EXPECT_TRUE(std::holds_alternative<ApiCall>(call));
  return std::move(std::get<ApiCall>(call));
}

CompletionLabel response_label() {
  CompletionLabel made;
  made.id = kId;
  made.created = 1700000000;
  made.model = "m";
  return made;
}

Delta delta(ReplyPieces pieces) {
  Delta made;
  made.pieces = std::move(pieces);
  return made;
}

Delta last_delta(const char* reason = "stop") {
  Delta made;
  made.end = ChoiceEnd{reason, std::nullopt, std::nullopt};
  return made;
}

LogprobEntry entry(const std::string& text, std::size_t offset = 0) {
  LogprobEntry made;
  made.chosen = {text, -0.5F, 1};
  made.best = {{text, -0.5F, 1}};
  made.given_offset = offset;
  return made;
}

CompletionUsage usage() {
  CompletionUsage made;
  made.prompt_tokens = 10;
  made.cached_tokens = 4;
  made.completion_tokens = 3;
  made.reasoning_tokens = 1;
  return made;
}

/// The events of a stream, which are numbered.
std::vector<json> numbered_events(const std::string& frames) {
  std::vector<json> events = events_of(frames);
  for (std::size_t i = 0; i < events.size(); ++i)
    EXPECT_EQ(events[i]["sequence_number"], i);
  return events;
}

std::vector<std::string> types_of(const std::vector<json>& events) {
  std::vector<std::string> types;
  for (const json& event : events) {
    auto type = event["type"].get<std::string>();
    if (type.starts_with("response.")) type.erase(0, 9);
    types.push_back(std::move(type));
  }
  return types;
}

std::string stream_of(const ApiCall& call, const std::vector<Delta>& deltas) {
  ResponsesWriter writer(call, response_label());
  std::string out;
  writer.append_start(out, 10);
  for (const Delta& one : deltas)
    writer.append_delta(out, one);
  writer.append_end(out, usage(), "");
  return out;
}

TEST(ResponsesWriter, TextHasItsEventsInOrder) {
  const auto events = numbered_events(
      stream_of(response_call(), {delta({piece(PieceKind::kContent, "Hel")}),
                                  delta({piece(PieceKind::kContent, "lo")}), last_delta()}));
  EXPECT_EQ(
      types_of(events),
      (std::vector<std::string>{"created", "in_progress", "output_item.added", "content_part.added",
                                "output_text.delta", "output_text.delta", "output_text.done",
                                "content_part.done", "output_item.done", "completed"}));
  EXPECT_EQ(events[0]["response"]["status"], "in_progress");
  EXPECT_EQ(events[0]["response"]["output"], json::array());
  EXPECT_TRUE(events[0]["response"]["usage"].is_null());
  EXPECT_EQ(events[2]["item"]["content"], json::array());
  EXPECT_EQ(events[2]["item"]["status"], "in_progress");
  EXPECT_EQ(events[3]["part"]["text"], "");
  EXPECT_EQ(events[4]["delta"], "Hel");
  EXPECT_EQ(events[4]["logprobs"], json::array());
  EXPECT_EQ(events[4]["item_id"], events[2]["item"]["id"]);
  EXPECT_EQ(events[4]["output_index"], 0);
  EXPECT_EQ(events[4]["content_index"], 0);
  EXPECT_EQ(events[6]["text"], "Hello");
  EXPECT_EQ(events[7]["part"]["text"], "Hello");
  EXPECT_EQ(events[8]["item"]["status"], "completed");
  const json& response = events[9]["response"];
  EXPECT_EQ(response["status"], "completed");
  EXPECT_EQ(response["output"][0], events[8]["item"]);
  EXPECT_EQ(response["id"], kId);
  EXPECT_EQ(response["created_at"], 1700000000);
  EXPECT_GE(response["completed_at"], 1700000000);
  EXPECT_EQ(response["usage"],
            json::parse(R"({"input_tokens": 10, "input_tokens_details": {"cached_tokens": 4,
              "cache_write_tokens": 6}, "output_tokens": 3, "output_tokens_details":
              {"reasoning_tokens": 1}, "total_tokens": 13})"));
}

TEST(ResponsesWriter, ThinkingTextAndCallsAreItemsOfTheirOwn) {
  const auto events = numbered_events(
      stream_of(response_call(),
                {delta({piece(PieceKind::kReasoning, "hm")}),
                 delta({piece(PieceKind::kContent, "See:"), piece(PieceKind::kCallStart, "f", 0)}),
                 delta({piece(PieceKind::kArguments, R"({"a")", 0)}),
                 delta({piece(PieceKind::kArguments, R"(:1})", 0),
                        piece(PieceKind::kCallEnd, "", 0), piece(PieceKind::kCallStart, "g", 1),
                        piece(PieceKind::kArguments, "{}", 1), piece(PieceKind::kCallEnd, "", 1)}),
                 last_delta("tool_calls")}));
  EXPECT_EQ(types_of(events), (std::vector<std::string>{"created",
                                                        "in_progress",
                                                        "output_item.added",
                                                        "content_part.added",
                                                        "reasoning_text.delta",
                                                        "reasoning_text.done",
                                                        "content_part.done",
                                                        "output_item.done",
                                                        "output_item.added",
                                                        "content_part.added",
                                                        "output_text.delta",
                                                        "output_text.done",
                                                        "content_part.done",
                                                        "output_item.done",
                                                        "output_item.added",
                                                        "function_call_arguments.delta",
                                                        "function_call_arguments.delta",
                                                        "function_call_arguments.done",
                                                        "output_item.done",
                                                        "output_item.added",
                                                        "function_call_arguments.delta",
                                                        "function_call_arguments.done",
                                                        "output_item.done",
                                                        "completed"}));
  const json& output = events.back()["response"]["output"];
  ASSERT_EQ(output.size(), 4U);
  EXPECT_EQ(output[0]["type"], "reasoning");
  EXPECT_EQ(output[0]["content"][0], json::parse(R"({"type": "reasoning_text", "text": "hm"})"));
  EXPECT_EQ(output[0]["summary"], json::array());
  EXPECT_EQ(output[1]["content"][0]["text"], "See:");
  EXPECT_EQ(output[2]["type"], "function_call");
  EXPECT_EQ(output[2]["name"], "f");
  EXPECT_EQ(output[2]["arguments"], R"({"a":1})");
  EXPECT_EQ(output[2]["call_id"], "call_0");
  EXPECT_EQ(output[3]["call_id"], "call_1");
  std::set<std::string> ids;
  for (const json& item : output)
    ids.insert(item["id"].get<std::string>());
  EXPECT_EQ(ids.size(), 4U);
  for (std::size_t i = 0; i < events.size(); ++i) {
    if (!events[i].contains("output_index")) continue;
    const json& item = output[events[i]["output_index"].get<std::size_t>()];
    EXPECT_EQ(events[i].contains("item_id") ? events[i]["item_id"] : events[i]["item"]["id"],
              item["id"]);
  }
}

TEST(ResponsesWriter, WhatTheLimitCutIsIncomplete) {
  const auto events = numbered_events(stream_of(
      response_call(), {delta({piece(PieceKind::kContent, "Hel")}), last_delta("length")}));
  EXPECT_EQ(events.back()["type"], "response.incomplete");
  const json& response = events.back()["response"];
  EXPECT_EQ(response["status"], "incomplete");
  EXPECT_EQ(response["incomplete_details"]["reason"], "max_output_tokens");
  EXPECT_EQ(response["output"][0]["status"], "incomplete");
  EXPECT_TRUE(response["completed_at"].is_null());
}

TEST(ResponsesWriter, AnEmptyReplyIsAMessageWithoutText) {
  const auto events = numbered_events(stream_of(response_call(), {last_delta()}));
  ASSERT_EQ(events.back()["response"]["output"].size(), 1U);
  EXPECT_EQ(events.back()["response"]["output"][0]["content"][0]["text"], "");
  const auto warmed = numbered_events(stream_of(
      response_call(R"(, "prompt_cache_options": {"prewarm": true})"), {last_delta("length")}));
  EXPECT_EQ(warmed.back()["type"], "response.completed");
  EXPECT_TRUE(warmed.back()["response"]["output"].empty());
}

TEST(ResponsesWriter, AFailureIsAnErrorAndAFailedResponse) {
  ResponsesWriter writer(response_call(), response_label());
  std::string out;
  writer.append_start(out, 10);
  writer.append_delta(out, delta({piece(PieceKind::kContent, "Hel")}));
  ApiError error;
  error.status = 503;
  error.code = "unavailable";
  error.message = "gone";
  writer.append_error(out, error);
  const auto events = numbered_events(out);
  const json& said = events[events.size() - 2];
  EXPECT_EQ(said["type"], "error");
  EXPECT_EQ(said["code"], "unavailable");
  EXPECT_EQ(said["message"], "gone");
  EXPECT_TRUE(said["param"].is_null());
  EXPECT_EQ(events.back()["type"], "response.failed");
  EXPECT_EQ(events.back()["response"]["status"], "failed");
  EXPECT_EQ(events.back()["response"]["error"],
            json::parse(R"({"code": "server_error", "message": "gone"})"));
  EXPECT_EQ(writer.status(), "failed");
}

TEST(ResponsesWriter, ABackgroundResponseIsQueuedFirst) {
  ResponsesWriter writer(response_call(R"(, "background": true)"), response_label());
  EXPECT_EQ(json::parse(writer.object())["status"], "queued");
  std::string out;
  writer.append_start(out, 10);
  const auto events = numbered_events(out);
  EXPECT_EQ(types_of(events), (std::vector<std::string>{"created", "queued", "in_progress"}));
  EXPECT_EQ(events[1]["response"]["status"], "queued");
  EXPECT_EQ(events[2]["response"]["status"], "in_progress");
  EXPECT_EQ(events[0]["response"]["background"], true);
  EXPECT_EQ(writer.num_events(), 3);
  writer.append_delta(out, delta({piece(PieceKind::kContent, "Hel")}));
  writer.cancel();
  const json object = json::parse(writer.object());
  EXPECT_EQ(object["status"], "cancelled");
  EXPECT_EQ(object["output"][0]["status"], "incomplete");
}

TEST(ResponsesWriter, LogprobsGoWithTheirText) {
  const ApiCall call = response_call(R"(, "include": ["message.output_text.logprobs"])");
  Delta thought = delta({piece(PieceKind::kReasoning, "hm")});
  thought.logprobs = {entry("hm")};
  Delta held = delta({});
  held.logprobs = {entry("He", 2)};
  Delta text = delta({piece(PieceKind::kContent, "Hello")});
  text.logprobs = {entry("llo", 2)};
  const auto events = numbered_events(stream_of(call, {thought, held, text, last_delta()}));
  const json& streamed = events[10]["logprobs"];
  ASSERT_EQ(events[10]["type"], "response.output_text.delta");
  ASSERT_EQ(streamed.size(), 2U);
  EXPECT_EQ(streamed[0]["token"], "He");
  EXPECT_EQ(streamed[1]["token"], "llo");
  EXPECT_EQ(streamed[1]["logprob"], -0.5);
  EXPECT_EQ(streamed[1]["top_logprobs"][0]["token"], "llo");
  EXPECT_EQ(streamed[1]["bytes"], (json::array({108, 108, 111})));
  const json& output = events.back()["response"]["output"];
  EXPECT_EQ(output[1]["content"][0]["logprobs"], streamed);

  ResponsesWriter writer(call, response_label());
  WholeChoice choice;
  choice.pieces = {piece(PieceKind::kReasoning, "hm"), piece(PieceKind::kContent, "Hello")};
  choice.logprobs = {entry("hm", 0), entry("He", 2), entry("llo", 2)};
  const std::vector<WholeChoice> choices = {choice};
  const json whole = json::parse(writer.body(choices, usage(), ""));
  EXPECT_EQ(whole["output"][1]["content"][0]["logprobs"], streamed);
}

TEST(ResponsesWriter, WholeAndStreamedAreTheSame) {
  const ApiCall call = response_call(R"(, "return_token_ids": true)");
  Delta first = delta({piece(PieceKind::kReasoning, "hm"), piece(PieceKind::kContent, "a")});
  first.token_ids = {1, 2};
  first.prompt_fields = R"(,"prompt_token_ids":[5])";
  Delta call_delta = delta({piece(PieceKind::kCallStart, "f"), piece(PieceKind::kArguments, "{}"),
                            piece(PieceKind::kCallEnd, "")});
  call_delta.token_ids = {3};
  const auto events =
      numbered_events(stream_of(call, {first, call_delta, last_delta("tool_calls")}));
  ResponsesWriter writer(call, response_label());
  WholeChoice choice;
  choice.pieces = first.pieces;
  choice.pieces.insert(choice.pieces.end(), call_delta.pieces.begin(), call_delta.pieces.end());
  choice.end.reason = "tool_calls";
  choice.token_ids = {1, 2, 3};
  choice.prompt_fields = first.prompt_fields;
  const std::vector<WholeChoice> choices = {choice};
  json whole = json::parse(writer.body(choices, usage(), ""));
  json streamed = events.back()["response"];
  whole.erase("completed_at");
  streamed.erase("completed_at");
  EXPECT_EQ(whole, streamed);
  EXPECT_EQ(whole["token_ids"], (json::array({1, 2, 3})));
  EXPECT_EQ(whole["prompt_token_ids"], json::array({5}));
  EXPECT_EQ(writer.items().size(), 3U);
  EXPECT_EQ(json::parse(writer.items()[2].second), whole["output"][2]);
}

}  // namespace
}  // namespace thaw::coalescer
