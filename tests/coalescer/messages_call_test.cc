// Bodies of POST /v1/messages: what becomes of them, and what is refused.

#include "coalescer/openai/messages_call.h"

#include <stdexcept>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "tests/coalescer/http_client.h"

namespace thaw::coalescer {
namespace {

using nlohmann::ordered_json;

const ByteCodec& codec() {
  static const ByteCodec bytes;
  return bytes;
}

ApiResult<ApiCall> parse_message(const std::string& body) {
  return parse_call(ApiKind::kMessages, body, {64, 258, nullptr, &codec()});
}

/// `fields` beside one message and `max_tokens`; either is left out where `fields` has it.
std::string body_with(const std::string& fields) {
  std::string body = "{" + fields;
  const auto add = [&](const char* name, const char* field) {
    if (fields.find(name) != std::string::npos) return;
    if (body.size() > 1) body += ", ";
    body += field;
  };
  add("\"messages\"", R"("messages": [{"role": "user", "content": "hi"}])");
  add("\"max_tokens\"", R"("max_tokens": 9)");
  return body + "}";
}

ApiCall call_of(const std::string& fields) {
  auto parsed = parse_message(body_with(fields));
  if (const auto* error = std::get_if<ApiError>(&parsed)) throw std::runtime_error(error->message);
  return std::get<ApiCall>(std::move(parsed));
}

ApiError error_of(const std::string& body) {
  const auto parsed = parse_message(body);
  const auto* error = std::get_if<ApiError>(&parsed);
  ApiError none;
  none.status = 200;
  return error != nullptr ? *error : none;
}

const ChatPrompt& prompt_of(const ApiCall& call) {
  return std::get<ChatPrompt>(call.prompts.at(0));
}

ordered_json messages_of(const std::string& fields) {
  const ApiCall call = call_of(fields);
  return prompt_of(call).messages;
}

constexpr const char* kTools =
    R"("tools": [{"name": "weather", "description": "Of a city.", "input_schema": )"
    R"({"type": "object", "properties": {"city": {"type": "string"}}}}, )"
    R"({"type": "custom", "name": "time", "input_schema": {"type": "object"}}])";

TEST(MessagesCall, TurnsBecomeTheMessagesOfAChat) {
  EXPECT_EQ(messages_of(R"("system": "Be short.", "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": [{"type": "text", "text": "b"}]},
                {"role": "user", "content": [{"type": "text", "text": "c"},
                                             {"type": "text", "text": "d"}]}])"),
            ordered_json::parse(R"([{"role": "system", "content": "Be short."},
                {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
                {"role": "user", "content": "c\nd"}])"));
  EXPECT_EQ(messages_of(R"("system": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}],
                           "messages": [{"role": "user", "content": "a"},
                                        {"role": "user", "content": "b"},
                                        {"role": "system", "content": "z"}])"),
            ordered_json::parse(R"([{"role": "system", "content": "x\ny"},
                {"role": "user", "content": "a\nb"}, {"role": "system", "content": "z"}])"));
}

TEST(MessagesCall, CallsTheirResultsAndThinkingAreThoseOfAChat) {
  const char* given = R"("messages": [
      {"role": "user", "content": "Weather?"},
      {"role": "assistant", "content": [
          {"type": "thinking", "thinking": "Look it up.", "signature": "s"},
          {"type": "redacted_thinking", "data": "zzz"},
          {"type": "text", "text": "One moment."},
          {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Bonn"}},
          {"type": "tool_use", "id": "c2", "name": "time", "input": {}}]},
      {"role": "user", "content": [
          {"type": "tool_result", "tool_use_id": "c1", "content": "rain"},
          {"type": "tool_result", "tool_use_id": "c2", "is_error": true,
           "content": [{"type": "text", "text": "no"}, {"type": "text", "text": "clock"}]},
          {"type": "text", "text": "And now?"}]}])";
  const ordered_json messages = messages_of(given);
  ASSERT_EQ(messages.size(), 5U);
  EXPECT_EQ(messages[1]["content"], "One moment.");
  EXPECT_EQ(messages[1]["reasoning_content"], "Look it up.");
  EXPECT_EQ(messages[1]["tool_calls"], ordered_json::parse(R"([
      {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Bonn"}}},
      {"id": "c2", "type": "function", "function": {"name": "time", "arguments": {}}}])"));
  EXPECT_EQ(messages[2],
            ordered_json::parse(R"({"role": "tool", "content": "rain", "tool_call_id": "c1"})"));
  EXPECT_EQ(messages[3]["content"], "Error: no\nclock");
  EXPECT_EQ(messages[4], ordered_json::parse(R"({"role": "user", "content": "And now?"})"));
}

TEST(MessagesCall, ResultsAloneLeaveNoEmptyTurn) {
  const ordered_json messages = messages_of(R"("messages": [{"role": "user", "content": [
      {"type": "tool_result", "tool_use_id": "c1", "content": "a"},
      {"type": "tool_result", "tool_use_id": "c2"}]}])");
  ASSERT_EQ(messages.size(), 2U);
  EXPECT_EQ(messages[0]["tool_call_id"], "c1");
  EXPECT_EQ(messages[1]["content"], "");
}

TEST(MessagesCall, AnAssistantsLastTurnIsGoneOnWith) {
  const ApiCall call = call_of(R"("messages": [{"role": "user", "content": "1+1?"},
                                               {"role": "assistant", "content": "It is"}])");
  EXPECT_TRUE(prompt_of(call).continue_final_message);
  EXPECT_FALSE(prompt_of(call).add_generation_prompt);
  EXPECT_FALSE(prompt_of(call_of("")).continue_final_message);
}

TEST(MessagesCall, ToolsAreThoseOfAChat) {
  const ApiCall call = call_of(kTools);
  ASSERT_EQ(call.tools.specs.size(), 2U);
  EXPECT_EQ(call.tools.specs[0].description, "Of a city.");
  EXPECT_EQ(call.tools.mode, ToolMode::kAuto);
  EXPECT_FALSE(call.tools.parallel.has_value());
  EXPECT_EQ(prompt_of(call).tools, ordered_json::parse(R"([
      {"type": "function", "function": {"name": "weather", "description": "Of a city.",
       "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}},
      {"type": "function", "function": {"name": "time", "parameters": {"type": "object"}}}])"));
}

TEST(MessagesCall, ToolChoiceSaysWhatMayBeCalled) {
  const auto chosen = [](const std::string& choice) {
    return call_of(std::string(kTools) + R"(, "tool_choice": )" + choice);
  };
  EXPECT_EQ(chosen(R"({"type": "auto"})").tools.mode, ToolMode::kAuto);
  EXPECT_EQ(chosen(R"({"type": "any"})").tools.mode, ToolMode::kRequired);
  const ApiCall named = chosen(R"({"type": "tool", "name": "time"})");
  EXPECT_EQ(named.tools.mode, ToolMode::kRequired);
  EXPECT_EQ(named.tools.allowed, std::vector<std::string>{"time"});
  EXPECT_EQ(named.tools.parallel, false);
  const ApiCall single = chosen(R"({"type": "any", "disable_parallel_tool_use": true})");
  EXPECT_EQ(single.tools.parallel, false);
  const ApiCall none = chosen(R"({"type": "none"})");
  EXPECT_TRUE(none.hides_tools);
  EXPECT_TRUE(prompt_of(none).tools.is_null());
}

TEST(MessagesCall, SamplingIsThatOfTheOtherEndpoints) {
  const ApiCall call = call_of(
      R"("temperature": 0.5, "top_p": 0.9, "top_k": 7, "seed": 3, "stop_sequences": ["a", "b"],
         "cache_salt": "s", "metadata": {"user_id": "u"}, "service_tier": "auto", "stream": true,
         "thaw": {"explain": true, "tool_auto": "eager"})");
  EXPECT_EQ(call.max_tokens, 9U);
  EXPECT_FLOAT_EQ(call.sampling.temperature, 0.5F);
  EXPECT_EQ(call.sampling.top_k, 7);
  EXPECT_EQ(call.seed, 3U);
  EXPECT_EQ(call.stop, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(call.cache_salt, "s");
  EXPECT_TRUE(call.stream);
  EXPECT_TRUE(call.explain);
  EXPECT_EQ(call.tools.eager, true);
}

TEST(MessagesCall, ThinkingAndEffortReachTheTemplate) {
  const auto kwargs = [](const std::string& fields) {
    const ApiCall call = call_of(fields);
    return prompt_of(call).template_kwargs;
  };
  EXPECT_EQ(kwargs(R"("thinking": {"type": "enabled", "budget_tokens": 1024})"),
            ordered_json::parse(R"({"enable_thinking": true, "thinking": true})"));
  EXPECT_EQ(kwargs(R"("thinking": {"type": "disabled"})")["enable_thinking"], false);
  EXPECT_TRUE(kwargs(R"("thinking": {"type": "adaptive"})").empty());
  EXPECT_EQ(kwargs(R"("output_config": {"effort": "low"})")["reasoning_effort"], "low");
  EXPECT_EQ(kwargs(R"("thinking": {"type": "enabled"}, "chat_template_kwargs":
                      {"enable_thinking": false})")["enable_thinking"],
            false);
  EXPECT_FALSE(call_of(R"("thinking": {"type": "adaptive", "display": "omitted"})").show.reasoning);
  const std::string longest = std::string(63, 'a') + "é";
  EXPECT_EQ(kwargs(R"("output_config": {"effort": ")" + longest + "\"}")["reasoning_effort"],
            longest);
  EXPECT_EQ(error_of(body_with(R"("output_config": {"effort": ")" + longest + "b\"}")).param,
            "output_config.effort");
}

TEST(MessagesCall, AFormIsASchema) {
  for (const char* field : {R"("output_config": {"format": )", R"("output_format": )"}) {
    const std::string close = field[8] == 'c' ? "}" : "";
    const ApiCall call = call_of(
        std::string(field) + R"({"type": "json_schema", "schema": {"type": "object"}})" + close);
    EXPECT_EQ(call.output.kind, OutputKind::kJsonSchema) << field;
    EXPECT_EQ(call.output.schema, ordered_json::parse(R"({"type": "object"})")) << field;
  }
}

/// Breakpoints as "message:bytes".
std::vector<std::string> breakpoints_of(const std::string& fields) {
  std::vector<std::string> found;
  for (const ContentBreakpoint& point : call_of(fields).cache.breakpoints)
    found.push_back(std::to_string(point.message) + ":" + std::to_string(point.bytes));
  return found;
}

TEST(MessagesCall, CacheControlIsABreakpoint) {
  using Points = std::vector<std::string>;
  const std::string mark = R"("cache_control": {"type": "ephemeral"})";
  // Behind the system's last block is where the next message's text begins: what a template writes
  // between them, tools included, is kept.
  EXPECT_EQ(breakpoints_of(R"("system": [{"type": "text", "text": "abc", )" + mark +
                           R"(}, {"type": "text", "text": "d", )" + mark + "}]"),
            (Points{"0:3", "1:0"}));
  EXPECT_EQ(breakpoints_of(R"("messages": [{"role": "user", "content": [
                {"type": "text", "text": "ab", )" +
                           mark + R"(}, {"type": "text", "text": "c"}]}])"),
            Points{"0:2"});
  EXPECT_EQ(breakpoints_of(mark), Points{"0:2"});
  EXPECT_EQ(breakpoints_of(R"("system": "abc", "tools": [{"name": "f", "input_schema": {}, )" +
                           mark + "}]"),
            Points{"1:0"});
  EXPECT_EQ(breakpoints_of(R"("messages": [
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": [
                    {"type": "tool_use", "id": "c", "name": "f", "input": {}, )" +
                           mark + R"(}]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "c", "content": "four", )" +
                           mark + "}]}]"),
            (Points{"2:0", "2:4"}));
}

TEST(MessagesCall, CacheControlIsKeptForItsTime) {
  const auto ttl = [](const std::string& fields) { return call_of(fields).cache.ttl.count(); };
  EXPECT_EQ(ttl(""), 0);
  EXPECT_EQ(ttl(R"("cache_control": {"type": "ephemeral"})"), 300);
  EXPECT_EQ(ttl(R"("cache_control": {"type": "ephemeral", "ttl": "1h"})"), 3600);
  EXPECT_EQ(ttl(R"("system": [{"type": "text", "text": "a",
                               "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
                   "cache_control": {"type": "ephemeral", "ttl": "5m"})"),
            3600);
  EXPECT_FALSE(call_of("").cache.prewarm);
  EXPECT_TRUE(call_of(R"("max_tokens": 0)").cache.prewarm);
}

TEST(MessagesCall, EveryWrongFieldIsNamed) {
  const auto message = [](const std::string& role, const std::string& content) {
    return R"("messages": [{"role": ")" + role + R"(", "content": )" + content + "}]";
  };
  const std::string tools = kTools;
  const std::pair<const char*, std::string> cases[] = {
      {"messages", R"("messages": [])"},
      {"messages[0]", R"("messages": ["hi"])"},
      {"messages[0].role", message("tool", R"("x")")},
      {"messages[0].content", message("user", "5")},
      {"messages[0].content", R"("messages": [{"role": "user"}])"},
      {"messages[0].content[0]", message("user", "[5]")},
      {"messages[0].content[0].text", message("user", R"([{"type": "text"}])")},
      {"messages[0].content[0].type", message("user", R"([{"type": "image", "source": {}}])")},
      {"messages[0].content[0].type", message("user", R"([{"type": "document"}])")},
      {"messages[0].content[0].type", message("user", R"([{"type": "tool_use"}])")},
      {"messages[0].content[0].type", message("assistant", R"([{"type": "tool_result"}])")},
      {"messages[0].content[0].tool_use_id", message("user", R"([{"type": "tool_result"}])")},
      {"messages[0].content[0].content[0].type",
       message("user", R"([{"type": "tool_result", "tool_use_id": "c",
                            "content": [{"type": "image"}]}])")},
      {"messages[0].content[0].input",
       message("assistant", R"([{"type": "tool_use", "id": "c", "name": "f", "input": "{}"}])")},
      {"messages",
       message("assistant", R"([{"type": "tool_use", "id": "c", "name": "f", "input": {}}])")},
      {"system", R"("system": 5)"},
      {"system[0].type", R"("system": [{"type": "image"}])"},
      {"cache_control.type", R"("cache_control": {"type": "forever"})"},
      {"cache_control.ttl", R"("cache_control": {"type": "ephemeral", "ttl": "25h"})"},
      {"stop_sequences[0]", R"("stop_sequences": [""])"},
      {"tools[0].type", R"("tools": [{"type": "web_search_20250305", "name": "web_search"}])"},
      {"tools[0].input_schema", R"("tools": [{"name": "f"}])"},
      {"tools[0].name", R"("tools": [{"name": "a b", "input_schema": {}}])"},
      {"tool_choice", R"("tool_choice": {"type": "any"})"},
      {"tool_choice.type", tools + R"(, "tool_choice": {"type": "some"})"},
      {"tool_choice.name", tools + R"(, "tool_choice": {"type": "tool"})"},
      {"tool_choice.name", tools + R"(, "tool_choice": {"type": "tool", "name": "g"})"},
      {"thinking.type", R"("thinking": {"type": "deep"})"},
      {"output_config.format.type", R"("output_config": {"format": {"type": "xml"}})"},
      {"output_config.format.schema", R"("output_config": {"format": {"type": "json_schema"}})"},
      {"n", R"("n": 2)"},
      {"logprobs", R"("logprobs": true)"},
      {"echo", R"("echo": true)"},
      {"container", R"("container": "c")"},
      {"max_tokens", R"("max_tokens": -1)"},
      {"temperature", R"("temperature": 3)"}};
  for (const auto& [param, fields] : cases) {
    const ApiError error = error_of(body_with(fields));
    EXPECT_EQ(error.status, 400) << fields;
    EXPECT_EQ(error.param, param) << fields << ": " << error.message;
  }
  EXPECT_EQ(error_of(R"({"messages": [{"role": "user", "content": "hi"}]})").param, "max_tokens");
}

TEST(MessagesCall, TokensAreCountedAsTheyAreRead) {
  ServedModels models;
  ServedModel model;
  model.names = {"fake"};
  model.max_model_len = 16;
  model.codec = std::make_shared<ByteCodec>();
  ASSERT_TRUE(models.add(std::move(model)));
  // "system: S\nuser: hello, you\nassistant:", longer than the context, which is no matter here.
  const auto counted = count_message_tokens(
      R"({"model": "fake", "system": "S", "messages": [{"role": "user", "content": "hello, you"}]})",
      models);
  EXPECT_EQ(std::get<std::string>(counted), R"({"input_tokens":37})");
  const auto refused = count_message_tokens(R"({"model": "other", "messages": []})", models);
  EXPECT_EQ(std::get<ApiError>(refused).status, 404);
}

}  // namespace
}  // namespace thaw::coalescer
