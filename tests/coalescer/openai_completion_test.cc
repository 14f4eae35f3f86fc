#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "coalescer/openai/completion.h"
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

void send_text(Completion& completion, std::string_view text, std::uint32_t from = 0) {
  for (const TokenId token : byte_tokens(text)) {
    TokenEvent event;
    event.request = 1;
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

TEST(Completion, MinTokensKeepsEarlyStopsInTheText) {
  const ByteCodec codec;
  ApiCall call = plain_call(ApiKind::kChat, false);
  call.stop = {"ab"};
  call.sampling.min_tokens = 4;
  Completion completion(call, 1, label(), &codec);
  send_text(completion, "abababab");
  ASSERT_EQ(completion.take_cancellations(), std::vector<std::size_t>{0});
  send_end(completion);
  ASSERT_TRUE(completion.ended());
  const json body = json::parse(completion.body(""));
  EXPECT_EQ(body["choices"][0]["message"]["content"], "abab");
  EXPECT_EQ(body["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(body["model"], "model \"quoted\"");
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
