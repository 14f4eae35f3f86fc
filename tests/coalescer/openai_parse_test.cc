#include <memory>
#include <random>
#include <string>
#include <utility>
#include <variant>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "coalescer/openai/call.h"
#include "coalescer/openai/fork_call.h"
#include "coalescer/openai/json_text.h"
#include "tests/coalescer/http_fakes.h"

namespace thaw::coalescer {
namespace {

using nlohmann::json;

ParseLimits limits() {
  return {64, 258, nullptr};
}

ChatPrompt chat_of(const std::string& body) {
  auto parsed = parse_call(ApiKind::kChat, body, limits());
  if (const auto* error = std::get_if<ApiError>(&parsed)) throw std::runtime_error(error->message);
  return std::get<ChatPrompt>(std::get<ApiCall>(parsed).prompts.at(0));
}

TEST(ParseMessages, ContentInEveryForm) {
  const ChatPrompt prompt = chat_of(R"({"messages": [
    {"role": "system", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    {"role": "developer", "content": "c"},
    {"role": "user", "content": null, "name": "kim"},
    {"role": "user", "content": []},
    {"role": "assistant", "tool_calls": [{"id": "1", "type": "function",
      "function": {"name": "f", "arguments": "{\"x\": 2.0, \"a\": [1]}"}}]},
    {"role": "assistant", "content": [{"type": "text", "text": "d"}], "tool_calls": []},
    {"role": "tool", "tool_call_id": "1", "content": "done"}]})");
  ASSERT_EQ(prompt.messages.size(), 7U);
  EXPECT_EQ(prompt.messages[0]["content"], "a\nb");
  EXPECT_EQ(prompt.messages[1]["role"], "system");
  EXPECT_EQ(prompt.messages[2]["content"], "");
  EXPECT_EQ(prompt.messages[2]["name"], "kim");
  EXPECT_EQ(prompt.messages[3]["content"], "");
  EXPECT_EQ(prompt.messages[4]["content"], "");
  // Arguments became an object with its order of keys and its float.
  EXPECT_EQ(prompt.messages[4]["tool_calls"][0]["function"]["arguments"].dump(),
            R"({"x":2.0,"a":[1]})");
  EXPECT_EQ(prompt.messages[5]["content"], "d");
  EXPECT_EQ(prompt.messages[6]["tool_call_id"], "1");
}

TEST(ParseMessages, BrokenArgumentsStayText) {
  const ChatPrompt prompt = chat_of(R"({"messages": [{"role": "assistant", "content": "",
    "tool_calls": [{"function": {"name": "f", "arguments": "not json"}}]}]})");
  EXPECT_EQ(prompt.messages[0]["tool_calls"][0]["function"]["arguments"], "not json");
}

TEST(ParseMessages, ToolsAndTemplateFields) {
  const std::string start = R"({"messages": [{"role": "user", "content": "x"}])";
  EXPECT_TRUE(chat_of(start + R"(, "tools": []})").tools.is_null());
  EXPECT_TRUE(chat_of(start + "}").add_generation_prompt);
  const ChatPrompt prompt =
      chat_of(start + R"(, "tools": [{"type": "function", "function": {"name": "f"}}],
      "tool_choice": "auto", "add_generation_prompt": false,
      "chat_template_kwargs": {"enable_thinking": false}})");
  EXPECT_EQ(prompt.tools[0]["function"]["name"], "f");
  EXPECT_FALSE(prompt.add_generation_prompt);
  EXPECT_EQ(prompt.template_kwargs["enable_thinking"], false);
  EXPECT_TRUE(chat_of(start + R"(, "tools": [{"type": "function", "function": {"name": "f"}}],
      "tool_choice": "none"})")
                  .tools.is_null());
}

TEST(ParseCall, IntegersMayBeWrittenAsFloats) {
  auto parsed = parse_call(ApiKind::kCompletions, R"({"prompt": "a", "max_tokens": 5.0, "n": 2.0})",
                           limits());
  ASSERT_TRUE(std::holds_alternative<ApiCall>(parsed));
  EXPECT_EQ(std::get<ApiCall>(parsed).max_tokens, 5U);
  EXPECT_EQ(std::get<ApiCall>(parsed).num_choices, 2U);
}

TEST(ParseCall, NullMeansLeftOut) {
  auto parsed = parse_call(ApiKind::kCompletions,
                           R"({"prompt": "a", "max_tokens": null, "temperature": null, "n": null,
      "stop": null, "logit_bias": null, "seed": null, "stream": null, "stream_options": null,
      "best_of": null, "suffix": null, "thaw": null, "response_format": null, "model": null,
      "logprobs": null, "echo": null, "cache_salt": null, "user": null})",
                           limits());
  ASSERT_TRUE(std::holds_alternative<ApiCall>(parsed)) << std::get<ApiError>(parsed).message;
  EXPECT_FALSE(std::get<ApiCall>(parsed).max_tokens);
}

TEST(ParseCall, TheModelsDefaultsStandForWhatIsLeftOut) {
  SamplingParams defaults;
  defaults.temperature = 0.7F;
  defaults.top_p = 0.8F;
  defaults.top_k = 20;
  defaults.repetition_penalty = 1.05F;
  ParseLimits with_defaults = limits();
  with_defaults.default_sampling = &defaults;
  auto parsed =
      parse_call(ApiKind::kCompletions,
                 R"({"prompt": "a", "temperature": 0, "top_k": -1, "top_p": null})", with_defaults);
  ASSERT_TRUE(std::holds_alternative<ApiCall>(parsed)) << std::get<ApiError>(parsed).message;
  const SamplingParams& sampling = std::get<ApiCall>(parsed).sampling;
  EXPECT_EQ(sampling.temperature, 0.0F);
  EXPECT_EQ(sampling.top_k, 0);
  EXPECT_EQ(sampling.top_p, 0.8F);
  EXPECT_EQ(sampling.repetition_penalty, 1.05F);
  EXPECT_EQ(sampling.min_p, 0.0F);
}

TEST(ParseCall, ManyKeysDoNotCostASquare) {
  std::string tool = R"({"messages": [{"role": "user", "content": "x"}], "tools": [{"function": )"
                     R"({"name": "f", "parameters": {)";
  for (int i = 0; i < 100000; ++i)
    tool += (i > 0 ? ",\"k" : "\"k") + std::to_string(i) + "\": 0";
  tool += "}}}]}";
  EXPECT_EQ(chat_of(tool).tools[0]["function"]["parameters"].size(), 100000U);
}

TEST(ParseCall, ManyKeysOfAFlatToolDoNotCostASquare) {
  std::string body = R"({"input": "x", "tools": [{"type": "function", "name": "f")";
  for (int i = 0; i < 100000; ++i)
    body += ",\"k" + std::to_string(i) + "\": 0";
  auto parsed = parse_call(ApiKind::kResponses, body + R"(, "strict": null}]})", limits());
  ASSERT_TRUE(std::holds_alternative<ApiCall>(parsed)) << std::get<ApiError>(parsed).message;
  const auto& prompt = std::get<ChatPrompt>(std::get<ApiCall>(parsed).prompts.at(0));
  const auto& function = prompt.tools[0]["function"];
  EXPECT_EQ(function.size(), 100001U);  // with the name, without what is null
  EXPECT_EQ(function.begin().key(), "name");
}

TEST(ParseForks, ManyKeysDoNotCostASquare) {
  const auto keys = [](const std::string& begin) {
    std::string out;
    for (int i = 0; i < 50000; ++i)
      out += "\"" + begin + std::to_string(i) + "\": 0,";
    return out;
  };
  const std::string body = "{" + keys("a") + R"("temperature": 0.5, "seed": 3, "trunk": )" +
                           R"({"prompt": "x"}, "forks": [{)" + keys("b") +
                           R"("seed": null, "temperature": 0.25}, {)" + keys("a") +
                           R"("seed": 4, "prompt": "y"}]})";
  ServedModel model;
  model.names = {"m"};
  model.max_model_len = 100;
  model.codec = std::make_shared<ByteCodec>();
  ServedModels models;
  ASSERT_TRUE(models.add(std::move(model)).has_value());
  auto parsed = parse_forks(body, models, 8);
  ASSERT_TRUE(std::holds_alternative<ForksCall>(parsed)) << std::get<ApiError>(parsed).message;
  const auto& branches = std::get<ForksCall>(parsed).branches;
  ASSERT_EQ(branches.size(), 2U);
  EXPECT_EQ(branches[0].call.sampling.temperature, 0.25F);
  EXPECT_EQ(branches[0].call.seed, 3U);
  EXPECT_EQ(branches[1].call.sampling.temperature, 0.5F);
  EXPECT_EQ(branches[1].call.seed, 4U);
  EXPECT_EQ(std::get<std::string>(branches[1].call.prompts.at(0)), "xy");
}

/// Whatever bytes come, the answer is a call or a 4xx.
TEST(ParseCall, RandomBytesAndDamagedBodies) {
  constexpr unsigned kSeed = 99;
  SCOPED_TRACE("seed " + std::to_string(kSeed));
  std::mt19937 random(kSeed);
  const std::string good = R"({"model": "m", "messages": [{"role": "user", "content": "Hi"},
    {"role": "assistant", "content": [{"type": "text", "text": "x"}]}], "stop": ["a"],
    "logit_bias": {"5": 1.5}, "tools": [{"type": "function", "function": {"name": "f",
    "parameters": {"type": "object"}}}], "tool_choice": "required", "guided_choice": ["a"], "stream_options": {"include_usage": true},
    "prompt": [[1, 2], [3]], "thaw": {"explain": true}, "n": 2, "seed": 3, "temperature": 0.5})";
  int accepted = 0;
  for (int round = 0; round < 20000; ++round) {
    std::string body = good;
    for (std::size_t edits = 1 + random() % 4; edits > 0; --edits) {
      const std::size_t at = random() % body.size();
      switch (random() % 3) {
        case 0:
          body[at] = static_cast<char>(random());
          break;
        case 1:
          body.erase(at, 1 + random() % 5);
          break;
        default:
          body.insert(at, 1, "0123456789{}[]\",:ntfe-"[random() % 22]);
      }
      if (body.empty()) body = " ";
    }
    for (const ApiKind kind : {ApiKind::kChat, ApiKind::kCompletions}) {
      auto parsed = parse_call(kind, body, limits());
      if (const auto* error = std::get_if<ApiError>(&parsed)) {
        ASSERT_GE(error->status, 400);
        ASSERT_LT(error->status, 500);
        ASSERT_FALSE(json::parse(error_body(*error))["error"]["message"].empty());
      } else {
        ++accepted;
      }
    }
  }
  EXPECT_GT(accepted, 100);
}

TEST(PreparePrompts, DefaultsAndRoom) {
  const ByteCodec codec;
  const auto prepare = [&](ApiKind kind, const std::string& body, std::uint32_t max_model_len) {
    auto parsed = parse_call(kind, body, limits());
    return prepare_prompts(std::get<ApiCall>(parsed), codec, max_model_len);
  };
  const auto max_tokens = [](const ApiResult<std::vector<PreparedPrompt>>& result) {
    return std::get<std::vector<PreparedPrompt>>(result).at(0).max_tokens;
  };
  const std::string text = R"({"prompt": "abcd"})";  // five tokens with BOS
  EXPECT_EQ(max_tokens(prepare(ApiKind::kCompletions, text, 100)), 16U);
  EXPECT_EQ(max_tokens(prepare(ApiKind::kCompletions, text, 10)), 5U);
  EXPECT_TRUE(std::holds_alternative<ApiError>(prepare(ApiKind::kCompletions, text, 5)));
  const std::string exact = R"({"prompt": "abcd", "max_tokens": 5})";
  EXPECT_EQ(max_tokens(prepare(ApiKind::kCompletions, exact, 10)), 5U);
  EXPECT_TRUE(std::holds_alternative<ApiError>(prepare(ApiKind::kCompletions, exact, 9)));
}

TEST(JsonText, EveryStringReadsBack) {
  constexpr unsigned kSeed = 5;
  SCOPED_TRACE("seed " + std::to_string(kSeed));
  std::mt19937 random(kSeed);
  for (int round = 0; round < 5000; ++round) {
    std::string text;
    for (std::size_t i = random() % 20; i > 0; --i)
      text += static_cast<char>(random() % 3 == 0 ? 0xc0 + random() % 64 : random() % 256);
    std::string written;
    append_json_string(written, text);
    // nlohmann's own writer replaces invalid bytes as well; compare where the text is valid.
    const std::string read = json::parse(written).get<std::string>();
    bool valid = true;
    try {
      valid = !json(text).dump().empty();
    } catch (const json::exception&) {
      valid = false;
    }
    if (valid) {
      ASSERT_EQ(read, text);
    }
  }
}

}  // namespace
}  // namespace thaw::coalescer
