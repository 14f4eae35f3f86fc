#include <memory>
#include <random>
#include <string>
#include <variant>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "coalescer/openai/completion.h"
#include "coalescer/openai/responses_call.h"
#include "tests/coalescer/http_client.h"
#include "tests/coalescer/writer_parts.h"

namespace thaw::coalescer {
namespace {

using nlohmann::json;

ApiCall plain_call(ApiKind kind, bool stream) {
  ApiCall call;
  call.kind = kind;
  call.stream = stream;
  return call;
}

void send_text(Completion& completion, std::string_view text, std::uint32_t from = 0,
               std::uint32_t choice = 0) {
  for (const TokenId token : byte_tokens(text)) {
    TokenEvent event;
    event.request = 1;
    event.choice = choice;
    event.index = from++;
    event.token = token;
    completion.on_event(0, event);
  }
}

void send_end(Completion& completion) {
  completion.on_event(0, FinishedEvent{1, 0, FinishReason::kStop, ByteCodec::kEos});
  completion.on_event(0, CompletedEvent{1, Usage{10, 4, 0}});
}

std::string delta_text(const std::string& frames) {
  std::string text;
  for (const std::string& data : sse_data(frames)) {
    if (data == "[DONE]") continue;
    const json chunk = json::parse(data);
    for (const json& choice : chunk["choices"])
      text += choice["delta"].value("content", "");
  }
  return text;
}

using UnwantedList = std::vector<Completion::Unwanted>;
const UnwantedList kWholeRequest = {{0, std::nullopt}};

TEST(Completion, MinTokensKeepsEarlyStopsInTheText) {
  const ByteCodec codec;
  ApiCall call = plain_call(ApiKind::kChat, false);
  call.stop = {"ab"};
  call.sampling.min_tokens = 4;
  Completion completion(call, 1, label(), &codec);
  send_text(completion, "abababab");
  ASSERT_EQ(completion.take_unwanted(), kWholeRequest);
  send_end(completion);
  ASSERT_TRUE(completion.ended());
  const json body = json::parse(completion.body(""));
  EXPECT_EQ(body["choices"][0]["message"]["content"], "abab");
  EXPECT_EQ(body["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(body["model"], "model \"quoted\"");
}

/// Two choices, each of which may end by a stop string.
ApiCall call_of_two() {
  ApiCall call = plain_call(ApiKind::kChat, false);
  call.stop = {"ab"};
  call.num_choices = 2;
  return call;
}

TEST(Completion, WhateverEndsTheLastChoiceTheRequestIsCancelled) {
  const ByteCodec codec;
  Completion completion(call_of_two(), 1, label(), &codec);
  send_text(completion, "xab", 0, 0);
  EXPECT_EQ(completion.take_unwanted(), (UnwantedList{{0, 0}})) << "the other goes on";
  send_text(completion, "yz", 0, 1);
  EXPECT_TRUE(completion.take_unwanted().empty());
  completion.on_event(0, FinishedEvent{1, 1, FinishReason::kStop, ByteCodec::kEos});
  EXPECT_EQ(completion.take_unwanted(), kWholeRequest);
  completion.on_event(0, CompletedEvent{1, Usage{10, 4, 0}});
  EXPECT_TRUE(completion.take_unwanted().empty());
}

TEST(Completion, WhatIsCompletedOrStoppedByItselfIsNotCancelled) {
  const ByteCodec codec;
  Completion cut_off(call_of_two(), 1, label(), &codec);
  send_text(cut_off, "xab", 0, 0);
  EXPECT_EQ(cut_off.take_unwanted().size(), 1U);
  cut_off.on_event(0, CompletedEvent{1, Usage{10, 4, 0}});  // without a word on choice 1
  EXPECT_TRUE(cut_off.ended());
  EXPECT_TRUE(cut_off.take_unwanted().empty());
  Completion stopped(call_of_two(), 1, label(), &codec);
  for (const std::uint32_t choice : {0U, 1U})
    stopped.on_event(0, FinishedEvent{1, choice, FinishReason::kStop, ByteCodec::kEos});
  EXPECT_TRUE(stopped.take_unwanted().empty());
}

TEST(Completion, RepeatedTokensOfAResumedStreamAreDropped) {
  const ByteCodec codec;
  Completion completion(plain_call(ApiKind::kChat, false), 1, label(), &codec);
  send_text(completion, "abc");
  send_text(completion, "bcd", 1);
  send_end(completion);
  EXPECT_EQ(json::parse(completion.body(""))["choices"][0]["message"]["content"], "abcd");
}

TEST(Completion, LostTokensAreAnError) {
  const ByteCodec codec;
  Completion completion(plain_call(ApiKind::kChat, false), 1, label(), &codec);
  send_text(completion, "abc");
  send_text(completion, "x", 4);
  ASSERT_TRUE(completion.error());
  EXPECT_EQ(completion.error()->status, 500);
}

TEST(Completion, CharactersAreNeverCut) {
  const ByteCodec codec;
  Completion completion(plain_call(ApiKind::kChat, true), 1, label(), &codec);
  const std::string text = "\xf0\x9f\x98\x80 \xc3\xa9\xff end\xe2\x82";
  std::string frames;
  std::uint32_t index = 0;
  for (const char c : text) {
    send_text(completion, {&c, 1}, index++);
    frames += completion.take_frames();  // parse fails where a character was cut
  }
  send_end(completion);
  frames += completion.take_frames() + completion.last_frames("");
  EXPECT_EQ(delta_text(frames), "\xf0\x9f\x98\x80 \xc3\xa9\xef\xbf\xbd end\xef\xbf\xbd");
}

TEST(Completion, StreamAndWholeAgreeForAnyBatching) {
  constexpr unsigned kSeed = 7;
  SCOPED_TRACE("seed " + std::to_string(kSeed));
  std::mt19937 random(kSeed);
  const ByteCodec codec;
  for (int round = 0; round < 300; ++round) {
    std::string text;
    for (std::size_t i = 0; i < 1 + random() % 30; ++i)
      text += static_cast<char>(random() % 8 == 0 ? random() % 256 : 'a' + random() % 3);
    ApiCall whole_call = plain_call(ApiKind::kChat, false);
    whole_call.stop = {"ab", "cca"};
    ApiCall stream_call = whole_call;
    stream_call.stream = true;
    Completion whole(whole_call, 1, label(), &codec);
    Completion stream(stream_call, 1, label(), &codec);
    std::string frames;
    std::uint32_t index = 0;
    for (const char c : text) {
      send_text(whole, {&c, 1}, index);
      send_text(stream, {&c, 1}, index++);
      if (random() % 2 == 0) frames += stream.take_frames();
    }
    send_end(whole);
    send_end(stream);
    frames += stream.take_frames() + stream.last_frames("");
    const json body = json::parse(whole.body(""));
    const auto content = body["choices"][0]["message"]["content"].get<std::string>();
    ASSERT_EQ(delta_text(frames), content) << text;
  }
}

TEST(Completion, UsageSumsPromptsAndCountsStopTokens) {
  const ByteCodec codec;
  Completion completion(plain_call(ApiKind::kCompletions, false), 2, label(), &codec);
  for (std::size_t prompt = 0; prompt < 2; ++prompt) {
    TokenEvent token;
    token.token = 'x';
    completion.on_event(prompt, token);
    completion.on_event(prompt, FinishedEvent{1, 0, FinishReason::kStop, ByteCodec::kEos});
    completion.on_event(prompt, CompletedEvent{1, Usage{10, 4, 0}});
  }
  const json usage = json::parse(completion.body(""))["usage"];
  EXPECT_EQ(usage["prompt_tokens"], 20);
  EXPECT_EQ(usage["prompt_tokens_details"]["cached_tokens"], 8);
  EXPECT_EQ(usage["completion_tokens"], 4);
}

TEST(Completion, FailureOfOnePromptFailsTheCall) {
  const ByteCodec codec;
  Completion completion(plain_call(ApiKind::kCompletions, false), 2, label(), &codec);
  completion.on_event(0, CompletedEvent{1, Usage{}});
  EXPECT_FALSE(completion.ended());
  completion.on_event(1, FailedEvent{2, make_error(Errc::kInvalidArgument, "worker 9")});
  ASSERT_TRUE(completion.ended());
  EXPECT_EQ(completion.error()->status, 400);
}

ApiCall responses_call(bool stream) {
  ApiCall call = std::get<ApiCall>(
      parse_call(ApiKind::kResponses, R"({"input": "q"})", ParseLimits{8, 258, nullptr}));
  call.stream = stream;
  return call;
}

/// A call whose reply a grammar holds to calls of `f`.
ApiCall held_call(ApiKind kind, bool stream) {
  ApiCall call = kind == ApiKind::kResponses ? responses_call(stream) : plain_call(kind, stream);
  ToolSpec tool;
  tool.name = "f";
  call.reply.tools = std::make_shared<const std::vector<ToolSpec>>(1, tool);
  call.reply.grammar = "{}";
  call.stop = {"Bo"};
  return call;
}

constexpr const char* kCallUpToStop = R"(<tool_call>{"name": "f", "arguments": {"city": "Bo)";
constexpr const char* kArgumentsUpToStop = R"({"city": ")";

/// The answer to `call`, of frames or of one body, after `text` and the end.
std::string answer_to(const ApiCall& call, std::string_view text, FinishReason reason) {
  const ByteCodec codec;
  Completion completion(call, 1, label(), &codec);
  completion.on_event(0, AdmittedEvent{1, 0});
  send_text(completion, text);
  FinishedEvent finished{1, 0, reason, std::nullopt};
  if (reason == FinishReason::kStop) finished.stop_token = ByteCodec::kEos;
  completion.on_event(0, finished);
  completion.on_event(0, CompletedEvent{1, Usage{10, 4, 0}});
  if (!call.stream) return completion.body("");
  std::string frames = completion.take_frames();
  return frames + completion.last_frames("");
}

TEST(Completion, AChatsCutCallIsNoReasonToCallIt) {
  const json whole = json::parse(
      answer_to(held_call(ApiKind::kChat, false), kCallUpToStop, FinishReason::kLength));
  const json& choice = whole["choices"][0];
  EXPECT_EQ(choice["finish_reason"], "stop");
  EXPECT_EQ(choice["stop_reason"], "Bo");
  EXPECT_EQ(choice["message"]["tool_calls"][0]["function"]["arguments"], kArgumentsUpToStop);
  std::string reason;
  std::string arguments;
  for (const std::string& data :
       sse_data(answer_to(held_call(ApiKind::kChat, true), kCallUpToStop, FinishReason::kLength))) {
    if (data == "[DONE]") continue;
    const json streamed = json::parse(data)["choices"][0];
    if (!streamed["finish_reason"].is_null()) reason = streamed["finish_reason"];
    for (const json& one : streamed["delta"].value("tool_calls", json::array()))
      arguments += one["function"]["arguments"].get<std::string>();
  }
  EXPECT_EQ(reason, "stop");
  EXPECT_EQ(arguments, kArgumentsUpToStop);
  // A call that is whole is one, whatever ends the reply behind it.
  const json called = json::parse(
      answer_to(held_call(ApiKind::kChat, false),
                R"(<tool_call>{"name": "f", "arguments": {}}</tool_call>Bo)", FinishReason::kStop));
  EXPECT_EQ(called["choices"][0]["finish_reason"], "tool_calls");
}

TEST(Completion, AMessagesCutCallIsNotToBeRun) {
  for (const bool by_string : {true, false}) {
    std::string text = kCallUpToStop;
    if (!by_string) text.pop_back();
    const json whole =
        json::parse(answer_to(held_call(ApiKind::kMessages, false), text, FinishReason::kLength));
    EXPECT_EQ(whole["stop_reason"], by_string ? "stop_sequence" : "max_tokens");
    EXPECT_EQ(whole["stop_sequence"], by_string ? json("Bo") : json());
    EXPECT_EQ(whole["content"][0]["type"], "tool_use");
    EXPECT_EQ(whole["content"][0]["input"], json::object());
    EXPECT_EQ(whole["content"][0]["partial_json"],
              kArgumentsUpToStop + std::string(by_string ? "" : "B"));
    const auto events =
        events_of(answer_to(held_call(ApiKind::kMessages, true), text, FinishReason::kLength));
    ASSERT_GT(events.size(), 3U);
    EXPECT_EQ(events[events.size() - 3]["type"], "content_block_stop");
    EXPECT_EQ(events[events.size() - 2]["delta"]["stop_reason"], whole["stop_reason"]);
    EXPECT_EQ(events[events.size() - 2]["delta"]["stop_sequence"], whole["stop_sequence"]);
  }
}

TEST(Completion, AResponsesCutCallIsIncomplete) {
  for (const bool by_string : {true, false}) {
    std::string text = kCallUpToStop;
    if (!by_string) text.pop_back();
    const json whole =
        json::parse(answer_to(held_call(ApiKind::kResponses, false), text, FinishReason::kLength));
    EXPECT_EQ(whole["status"], by_string ? "completed" : "incomplete");
    ASSERT_EQ(whole["output"].size(), 1U);
    EXPECT_EQ(whole["output"][0]["type"], "function_call");
    EXPECT_EQ(whole["output"][0]["status"], "incomplete");
    const auto events =
        events_of(answer_to(held_call(ApiKind::kResponses, true), text, FinishReason::kLength));
    EXPECT_EQ(events.back()["response"]["status"], whole["status"]);
    EXPECT_EQ(events.back()["response"]["output"], whole["output"]);
    EXPECT_EQ(events[events.size() - 2]["item"], whole["output"][0]);
  }
}

TEST(Completion, LogprobsOfAResponseAreThoseOfItsTextStreamedOrNot) {
  struct Wanted {
    const char* text;
    std::size_t entries;
  };
  // Stop strings swallow tokens; a character may be several, and the last one be cut off.
  for (const Wanted& wanted :
       {Wanted{"a\n\n", 1}, Wanted{"\n\n", 0}, Wanted{"a\nb", 3}, Wanted{"\xc3\xa9\n\n", 2},
        Wanted{"a\n\xc3\xa9\n\n", 4}, Wanted{"a\xc3", 2}, Wanted{"a\n", 2}}) {
    SCOPED_TRACE(wanted.text);
    ApiCall call = responses_call(false);
    call.logprobs = true;
    call.stop = {"\n\n"};
    const json whole = json::parse(answer_to(call, wanted.text, FinishReason::kLength));
    EXPECT_EQ(whole["output"][0]["content"][0]["logprobs"].size(), wanted.entries);
    call.stream = true;
    const auto events = events_of(answer_to(call, wanted.text, FinishReason::kLength));
    EXPECT_EQ(events.back()["response"]["output"], whole["output"]);
  }
}

TEST(Completion, NullUsageOnlyWhereUsageFollows) {
  const ByteCodec codec;
  for (const bool include : {false, true}) {
    ApiCall call = plain_call(ApiKind::kChat, true);
    call.include_usage = include;
    Completion completion(call, 1, label(), &codec);
    send_text(completion, "a");
    const std::string frames = completion.take_frames();
    EXPECT_EQ(frames.find("\"usage\":null") != std::string::npos, include);
  }
}

}  // namespace
}  // namespace thaw::coalescer
