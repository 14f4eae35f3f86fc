// What requests may say of sampling, of the prompt and of what is shown, and what answers then
// have.

#include <cmath>
#include <string>
#include <variant>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "coalescer/openai/completion.h"
#include "coalescer/openai/prompt_report.h"
#include "tests/coalescer/http_client.h"

namespace thaw::coalescer {
namespace {

using nlohmann::json;

ApiResult<ApiCall> parse(ApiKind kind, const std::string& fields) {
  static const ByteCodec codec;
  std::string body = R"({"messages": [{"role": "user", "content": "hi"}])";
  if (kind == ApiKind::kCompletions) body = R"({"prompt": "hi")";
  if (fields.find("\"prompt\"") != std::string::npos) body = R"({"kind": "text")";
  return parse_call(kind, body + (fields.empty() ? "" : ", " + fields) + "}",
                    {64, 258, nullptr, &codec});
}

ApiCall call_of(ApiKind kind, const std::string& fields) {
  auto parsed = parse(kind, fields);
  if (const auto* error = std::get_if<ApiError>(&parsed)) throw std::runtime_error(error->message);
  return std::get<ApiCall>(std::move(parsed));
}

ApiError error_of(ApiKind kind, const std::string& fields) {
  const auto parsed = parse(kind, fields);
  const auto* error = std::get_if<ApiError>(&parsed);
  return error != nullptr ? *error : ApiError{};
}

TEST(Fields, EveryWrongOneIsNamed) {
  const std::pair<const char*, const char*> cases[] = {
      {"allowed_token_ids[1]", R"("allowed_token_ids": [1, 258])"},
      {"allowed_token_ids", R"("allowed_token_ids": [])"},
      {"bad_words[1]", R"("bad_words": ["a", ""])"},
      {"bad_words", R"("bad_words": "a")"},
      {"best_of", R"("best_of": 1, "n": 2)"},
      {"best_of", R"("best_of": 2, "stream": true)"},
      {"echo", R"("echo": 1)"},
      {"max_tokens", R"("max_tokens": -1)"},
      {"min_p", R"("min_p": 1.5)"},
      {"prompt_cache_key", R"("prompt_cache_key": 5)"},
      {"prompt_cache_options.mode", R"("prompt_cache_options": {"mode": "sometimes"})"},
      {"prompt_cache_options.ttl", R"("prompt_cache_options": {"ttl": "25h"})"},
      {"prompt_cache_options.prewarm", R"("prompt_cache_options": {"prewarm": "yes"})"},
      {"prompt_cache_retention", R"("prompt_cache_retention": "long")"},
      {"prompt_logprobs", R"("prompt_logprobs": 21)"},
      {"prompt_logprobs", R"("prompt_logprobs": 1, "stream": true)"},
      {"return_token_ids", R"("return_token_ids": "no")"},
      {"stream_options.continuous_usage_stats",
       R"("stream_options": {"continuous_usage_stats": 1})"},
      {"truncate_prompt_tokens", R"("truncate_prompt_tokens": 0)"},
      {"truncate_prompt_tokens", R"("truncate_prompt_tokens": -2)"},
      {"use_beam_search", R"("use_beam_search": true)"},
      {"suffix", R"("suffix": "x")"},
      {"logits_processors", R"("logits_processors": ["f"])"}};
  for (const auto& [param, fields] : cases) {
    const ApiError error = error_of(ApiKind::kCompletions, fields);
    EXPECT_EQ(error.status, 400) << fields;
    EXPECT_EQ(error.param, param) << fields << ": " << error.message;
  }
  EXPECT_EQ(error_of(ApiKind::kChat, R"("best_of": 2)").code, "unsupported");
  EXPECT_EQ(error_of(ApiKind::kChat, R"("max_tokens": 0)").param, "max_tokens");
  EXPECT_EQ(error_of(ApiKind::kChat, R"("chat_template": "{{ x }}")").param, "chat_template");
  EXPECT_EQ(
      error_of(ApiKind::kChat, R"("continue_final_message": true, "add_generation_prompt": true)")
          .param,
      "continue_final_message");
}

TEST(Fields, WhatChangesNothingIsAccepted) {
  const ApiCall call = call_of(
      ApiKind::kChat,
      R"("user": "u", "metadata": {"a": "b"}, "store": true, "service_tier": "auto", "safety_identifier": "s",
         "verbosity": "low", "modalities": ["text"], "spaces_between_special_tokens": true, "length_penalty": 1,
         "request_id": "r", "stream_options": null, "logit_bias": null, "stop": null, "best_of": 1,
         "kv_transfer_params": {}, "parallel_tool_calls": false, "something_else": [1])");
  EXPECT_EQ(call.num_choices, 1U);
  EXPECT_TRUE(call.stop.empty());
}

TEST(Fields, BadWordsBecomeTokensWithAndWithoutASpace) {
  const ApiCall call = call_of(ApiKind::kChat, R"("bad_words": ["no", " no", "x"])");
  const std::vector<std::vector<TokenId>> wanted = {byte_tokens("no"), byte_tokens(" no"),
                                                    byte_tokens("x"), byte_tokens(" x")};
  EXPECT_EQ(call.sampling.bad_words, wanted);
}

TEST(Fields, RequestsCarryWhatTheEngineNeeds) {
  const auto request_of = [](const std::string& fields) {
    const ApiCall call = call_of(ApiKind::kCompletions, fields);
    const ByteCodec codec;
    auto prepared = std::get<std::vector<PreparedPrompt>>(prepare_prompts(call, codec, 100));
    return make_requests(call, std::move(prepared), "m", "", 7).front();
  };
  GenerateRequest request = request_of(R"("echo": true, "logprobs": 3, "max_tokens": 0)");
  EXPECT_EQ(request.prompt_logprobs, 3);
  EXPECT_EQ(request.sampling.max_tokens, 0U);
  request = request_of(R"("echo": true)");
  EXPECT_EQ(request.prompt_logprobs, -1);
  request = request_of(R"("prompt_logprobs": 0, "n": 2, "best_of": 5)");
  EXPECT_EQ(request.prompt_logprobs, 0);
  EXPECT_EQ(request.num_choices, 5U);
  EXPECT_EQ(request.sampling.top_logprobs, 0);
  request = request_of(R"("prompt": [1, 2, 3, 4], "truncate_prompt_tokens": 2)");
  EXPECT_EQ(request.prompt.size(), 2U);
  request = request_of(R"("add_special_tokens": false, "allowed_token_ids": [104, 105])");
  EXPECT_EQ(request.prompt, byte_tokens("hi"));
  EXPECT_EQ(request.sampling.allowed_token_ids, (std::vector<TokenId>{104, 105}));
  request = request_of(R"("prompt_cache_options": {"prewarm": true})");
  EXPECT_EQ(request.sampling.max_tokens, 0U);
}

TEST(Fields, AnOpenMessageIsGoneOnWith) {
  const ByteCodec codec;
  const std::string body = R"({"messages": [{"role": "user", "content": "a"},
      {"role": "assistant", "content": "begun"}], "continue_final_message": true, "echo": true})";
  const auto parsed = parse_call(ApiKind::kChat, body, {64, 258, nullptr, &codec});
  const ApiCall& call = std::get<ApiCall>(parsed);
  const auto prepared = std::get<std::vector<PreparedPrompt>>(prepare_prompts(call, codec, 100));
  EXPECT_EQ(codec.decode(prepared[0].tokens, true), "user: a\nassistant:begun");
  PromptReport report(call, 0, prepared[0], &codec);
  EXPECT_EQ(report.text(), "begun");
}

TEST(Fields, TtlsAndBreakpoints) {
  EXPECT_EQ(parse_ttl("90s")->count(), 90);
  EXPECT_EQ(parse_ttl("30m")->count(), 1800);
  EXPECT_EQ(parse_ttl("1d")->count(), 86400);
  for (const char* wrong : {"", "m", "0m", "-1m", "2d", "1.5h", "99999999999999999999s", "5x", "5"})
    EXPECT_FALSE(parse_ttl(wrong)) << wrong;
  const ByteCodec codec;
  const auto kept = [&](const std::string& rest) {
    const std::string body =
        R"({"messages": [{"role": "system", "content": [{"type": "text", "text": "long"},
        {"type": "text", "text": "er", "prompt_cache_breakpoint": {"mode": "explicit"}},
        {"type": "text", "text": "tail"}]}, {"role": "user", "content": "q"}])" +
        rest + "}";
    const auto parsed = parse_call(ApiKind::kChat, body, {64, 258, nullptr, &codec});
    const ApiCall& call = std::get<ApiCall>(parsed);
    return std::get<std::vector<PreparedPrompt>>(prepare_prompts(call, codec, 200))[0].kept_tokens;
  };
  EXPECT_EQ(kept(""), std::string("system: long\ner").size());
  EXPECT_EQ(call_of(ApiKind::kChat, "").cache.ttl.count(), 0);
  EXPECT_EQ(call_of(ApiKind::kChat, R"("prompt_cache_retention": "24h")").cache.ttl.count(), 86400);
  const auto whole = call_of(ApiKind::kChat, R"("prompt_cache_options": {"ttl": "5m"})");
  EXPECT_EQ(kept_tokens(whole.cache, nullptr, byte_tokens("hello"), codec), 5U);
  const auto none =
      call_of(ApiKind::kChat, R"("prompt_cache_options": {"ttl": "5m", "mode": "explicit"})");
  EXPECT_EQ(kept_tokens(none.cache, nullptr, byte_tokens("hello"), codec), 0U);
}

/// An answer to `fields` whose choices generate `texts`, each token with the log-probability that
/// follows from its place.
class Answer {
 public:
  Answer(ApiKind kind, const std::string& fields)
      : call_(call_of(kind, fields)),
        prompts_(std::get<std::vector<PreparedPrompt>>(prepare_prompts(call_, codec_, 1000))),
        completion_(call_, 1, {"id-1", 17, "m", "print", {}, ""}, &codec_) {
    completion_.set_prompts(call_, prompts_);
    completion_.on_event(0, AdmittedEvent{1, 0});
  }
  void score_prompt() {
    PromptLogprobsEvent event{1, 1, {}};
    for (std::size_t i = 1; i < prompts_[0].tokens.size(); ++i)
      event.tokens.push_back({-0.5F * static_cast<float>(i), 2, {{65, -0.25F}, {66, -1.0F}}});
    completion_.on_event(0, event);
  }
  void generate(const std::string& text, std::uint32_t choice = 0, float logprob = -1.0F) {
    std::uint32_t index = 0;
    for (const TokenId token : byte_tokens(text)) {
      TokenEvent event{1, choice, index++, token, logprob, {{token, logprob}}};
      completion_.on_event(0, event);
    }
  }
  void end(bool stop = true) {
    for (std::uint32_t i = 0; i < call_.num_choices; ++i) {
      FinishedEvent finished{1, i, stop ? FinishReason::kStop : FinishReason::kLength, {}};
      if (stop) finished.stop_token = ByteCodec::kEos;
      completion_.on_event(0, finished);
    }
    completion_.on_event(0, CompletedEvent{1, Usage{10, 4, 0}});
  }
  json body() { return json::parse(completion_.body("")); }
  std::vector<json> chunks() {
    std::vector<json> chunks;
    for (const std::string& data : sse_data(completion_.take_frames()))
      chunks.push_back(json::parse(data));
    return chunks;
  }

 private:
  ByteCodec codec_;
  ApiCall call_;
  std::vector<PreparedPrompt> prompts_;
  Completion completion_;
};

TEST(Answers, EchoWithLogprobs) {
  Answer answer(ApiKind::kCompletions, R"("prompt": "h\u00e9", "echo": true, "logprobs": 1)");
  answer.score_prompt();
  answer.generate("xy");
  answer.end();
  const json choice = answer.body()["choices"][0];
  EXPECT_EQ(choice["text"], "h\u00e9xy");
  const json& logprobs = choice["logprobs"];
  // BOS, h, two bytes, x, y.
  ASSERT_EQ(logprobs["tokens"].size(), 6U);
  EXPECT_EQ(logprobs["tokens"][0], "<bos>");
  EXPECT_TRUE(logprobs["token_logprobs"][0].is_null());
  EXPECT_TRUE(logprobs["top_logprobs"][0].is_null());
  EXPECT_EQ(logprobs["token_logprobs"][1], -0.5);
  EXPECT_EQ(logprobs["top_logprobs"][1], (json{{"A", -0.25}}));  // as many as were asked for
  EXPECT_EQ(logprobs["token_logprobs"][4], -1.0);
  EXPECT_EQ(logprobs["text_offset"], (json{0, 0, 1, 1, 2, 3}));  // in characters
}

TEST(Answers, TextOffsetsKnowNoStopString) {
  for (const bool echo : {false, true}) {
    Answer answer(ApiKind::kCompletions,
                  std::string(R"("prompt": "h\u00e9", "logprobs": 0, "stop": ["\n\n"])") +
                      (echo ? R"(, "echo": true)" : ""));
    if (echo) answer.score_prompt();
    answer.generate("a\nbc");
    answer.end();
    const json choice = answer.body()["choices"][0];
    EXPECT_EQ(choice["text"], echo ? "h\u00e9a\nbc" : "a\nbc");
    EXPECT_EQ(choice["logprobs"]["text_offset"],
              echo ? (json{0, 0, 1, 1, 2, 3, 4, 5}) : (json{0, 1, 2, 3}));
  }
}

TEST(Answers, EchoInAStreamWaitsForThePromptsScores) {
  Answer answer(ApiKind::kCompletions, R"("echo": true, "logprobs": 0, "stream": true, "n": 2)");
  EXPECT_TRUE(answer.chunks().empty());
  answer.score_prompt();
  const auto chunks = answer.chunks();
  ASSERT_EQ(chunks.size(), 2U);
  EXPECT_EQ(chunks[1]["choices"][0]["index"], 1);
  EXPECT_EQ(chunks[1]["choices"][0]["text"], "hi");
  EXPECT_EQ(chunks[1]["choices"][0]["logprobs"]["tokens"].size(), 3U);
  Answer plain(ApiKind::kCompletions, R"("echo": true, "stream": true)");
  EXPECT_EQ(plain.chunks().at(0)["choices"][0]["text"], "hi");
}

TEST(Answers, PromptLogprobsInVllmsForm) {
  Answer answer(ApiKind::kCompletions, R"("prompt": [65, 66], "prompt_logprobs": 2)");
  answer.score_prompt();
  answer.generate("z");
  answer.end();
  const json scores = answer.body()["choices"][0]["prompt_logprobs"];
  ASSERT_EQ(scores.size(), 2U);
  EXPECT_TRUE(scores[0].is_null());
  EXPECT_EQ(scores[1]["66"], (json{{"logprob", -0.5}, {"rank", 2}, {"decoded_token", "B"}}));
  EXPECT_EQ(scores[1]["65"], (json{{"logprob", -0.25}, {"rank", 1}, {"decoded_token", "A"}}));
  Answer chat(ApiKind::kChat, R"("prompt_logprobs": 0)");
  chat.score_prompt();
  chat.generate("z");
  chat.end();
  EXPECT_GT(chat.body()["prompt_logprobs"].size(), 10U);
  EXPECT_EQ(chat.body()["prompt_logprobs"][1].size(), 1U);
}

TEST(Answers, TokenIds) {
  Answer whole(ApiKind::kCompletions, R"("return_token_ids": true)");
  whole.generate("ab");
  whole.end();
  const json choice = whole.body()["choices"][0];
  EXPECT_EQ(choice["prompt_token_ids"], (json{256, 'h', 'i'}));
  EXPECT_EQ(choice["token_ids"], (json{'a', 'b', 257}));
  Answer stream(ApiKind::kChat, R"("return_token_ids": true, "stream": true)");
  stream.generate("ab");
  stream.end();
  const auto chunks = stream.chunks();
  EXPECT_GT(chunks[0]["prompt_token_ids"].size(), 3U);
  json ids = json::array();
  for (const json& chunk : chunks)
    for (const json& id : chunk["choices"][0]["token_ids"])
      ids.push_back(id);
  EXPECT_EQ(ids, (json{'a', 'b', 257}));
}

TEST(Answers, TokensAsIds) {
  Answer answer(ApiKind::kChat, R"("logprobs": true, "return_tokens_as_token_ids": true)");
  answer.generate("a");
  answer.end();
  const json entry = answer.body()["choices"][0]["logprobs"]["content"][0];
  EXPECT_EQ(entry["token"], "token_id:97");
  EXPECT_EQ(entry["bytes"], json{97});
}

TEST(Answers, StopStringsAndTokensInTheText) {
  Answer by_string(ApiKind::kChat, R"("stop": ["b"], "include_stop_str_in_output": true)");
  by_string.generate("abc");
  by_string.end();
  EXPECT_EQ(by_string.body()["choices"][0]["message"]["content"], "ab");
  EXPECT_EQ(by_string.body()["choices"][0]["stop_reason"], "b");
}

TEST(Answers, TheBestOfSeveral) {
  Answer answer(ApiKind::kCompletions, R"("n": 2, "best_of": 4)");
  answer.generate("first", 0, -2.0F);
  answer.generate("second and long", 1, -0.5F);
  answer.generate("third", 2, -3.0F);
  answer.generate("4", 3, -0.5F);  // as good a token, and later
  answer.end();
  const json body = answer.body();
  ASSERT_EQ(body["choices"].size(), 2U);
  EXPECT_EQ(body["choices"][0]["text"], "second and long");
  EXPECT_EQ(body["choices"][1]["text"], "4");
  EXPECT_EQ(body["choices"][1]["index"], 1);
  EXPECT_TRUE(body["choices"][0]["logprobs"].is_null());
  EXPECT_EQ(body["usage"]["completion_tokens"], 5 + 15 + 5 + 1 + 4);
}

TEST(Answers, UsageInEveryChunk) {
  Answer answer(ApiKind::kChat,
                R"("stream": true, "stream_options": {"continuous_usage_stats": true})");
  answer.generate("abc");
  const auto chunks = answer.chunks();
  EXPECT_EQ(chunks.front()["usage"]["completion_tokens"], 0);
  EXPECT_EQ(chunks.back()["usage"]["completion_tokens"], 3);
  EXPECT_GT(chunks.back()["usage"]["prompt_tokens"], 3);
}

TEST(Answers, UsageSaysWhatWasWritten) {
  Answer answer(ApiKind::kChat, "");
  answer.end();
  const json details = answer.body()["usage"]["prompt_tokens_details"];
  EXPECT_EQ(details["cached_tokens"], 4);
  EXPECT_EQ(details["cache_write_tokens"], 6);
}

}  // namespace
}  // namespace thaw::coalescer
