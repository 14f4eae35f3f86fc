#include <memory>
#include <string>
#include <utility>
#include <variant>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "coalescer/openai/json_text.h"
#include "coalescer/openai/responses_call.h"
#include "coalescer/openai/responses_prompt.h"
#include "tests/coalescer/http_client.h"

namespace thaw::coalescer {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr const char* kFlatWeather =
    R"({"type": "function", "name": "weather", "description": "d", "strict": true,)"
    R"( "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}})";

std::string body(const std::string& rest, const std::string& input = R"("Hello")") {
  return R"({"input": )" + input + (rest.empty() ? "" : ", " + rest) + "}";
}

ApiResult<ApiCall> parse_response(const std::string& text) {
  return parse_call(ApiKind::kResponses, text, ParseLimits{8, 258, nullptr});
}

ApiCall parsed_response(const std::string& text) {
  auto result = parse_response(text);
  if (const auto* error = std::get_if<ApiError>(&result)) {
    ADD_FAILURE() << text << ": " << error->message;
    return {};
  }
  return std::move(std::get<ApiCall>(result));
}

json echo_of(const ApiCall& call) {
  return json::parse("{" + call.responses->echo + "}");
}

const ChatPrompt& chat_of(const ApiCall& call) {
  return std::get<ChatPrompt>(call.prompts.front());
}

/// The prompt's text; the codec's tokens are bytes.
std::string prompt_text(ApiCall& call, const ResponsesPast& past = {},
                        std::uint32_t max_model_len = 4096) {
  const ByteCodec codec;
  auto prompt = prepare_responses(call, past, codec, max_model_len);
  if (const auto* error = std::get_if<ApiError>(&prompt)) return "error: " + error->param;
  return codec.decode(std::get<PreparedPrompt>(prompt).tokens, /*keep_special=*/true);
}

TEST(ResponsesCall, AStringIsAUsersMessage) {
  ApiCall call = parsed_response(body(""));
  EXPECT_EQ(call.kind, ApiKind::kResponses);
  EXPECT_TRUE(call.responses->store);
  EXPECT_FALSE(call.responses->background);
  EXPECT_EQ(prompt_text(call), "user: Hello\nassistant:");
  EXPECT_EQ(call.responses->input.front().shown["content"][0]["type"], "input_text");
}

TEST(ResponsesCall, ItemsBecomeTheMessagesOfAChat) {
  ApiCall call = parsed_response(body(R"("instructions": "Be brief.")", R"([
    {"role": "developer", "content": "Now."},
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"},
                                                    {"type": "input_text", "text": "b"}]},
    {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "no"}],
     "content": [{"type": "reasoning_text", "text": "hm"}]},
    {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
     "content": [{"type": "output_text", "text": "Let me see.", "annotations": []}]},
    {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{\"city\": \"Rome\"}"},
    {"type": "function_call", "call_id": "c2", "name": "weather", "arguments": ""},
    {"type": "function_call_output", "call_id": "c1", "output": "warm"},
    {"type": "function_call_output", "call_id": "c2",
     "output": [{"type": "input_text", "text": "cold"}]},
    {"type": "message", "role": "assistant", "content": "Warm."},
    {"type": "message", "role": "assistant", "content": "Cold."}])"));
  const ByteCodec codec;
  ASSERT_EQ(prompt_text(call).substr(0, 18), "system: Be brief.\n");
  const ordered_json& messages = chat_of(call).messages;
  ASSERT_EQ(messages.size(), 8U);
  EXPECT_EQ(messages[1], ordered_json({{"role", "system"}, {"content", "Now."}}));
  EXPECT_EQ(messages[2]["content"], "a\nb");
  EXPECT_EQ(messages[3]["content"], "Let me see.");
  EXPECT_EQ(messages[3]["reasoning_content"], "hm");
  ASSERT_EQ(messages[3]["tool_calls"].size(), 2U);
  EXPECT_EQ(messages[3]["tool_calls"][0]["id"], "c1");
  EXPECT_EQ(messages[3]["tool_calls"][0]["function"]["arguments"]["city"], "Rome");
  EXPECT_TRUE(messages[3]["tool_calls"][1]["function"]["arguments"].empty());
  EXPECT_EQ(messages[4],
            ordered_json({{"role", "tool"}, {"tool_call_id", "c1"}, {"content", "warm"}}));
  EXPECT_EQ(messages[5]["content"], "cold");
  EXPECT_EQ(messages[6]["content"], "Warm.");
  EXPECT_EQ(messages[7]["content"], "Cold.");
}

TEST(ResponsesCall, FieldsAreReadAndRepeated) {
  const ApiCall call = parsed_response(body(
      R"("model": "m", "temperature": 0.3, "top_p": 0.9, "max_output_tokens": 7, "max_tool_calls": 3,
         "top_logprobs": 2, "include": ["message.output_text.logprobs"], "seed": 5, "user": "u",
         "metadata": {"k": "v"}, "truncation": "auto", "store": false, "instructions": "I",
         "reasoning": {"effort": "none", "summary": "auto"}, "prompt_cache_key": "key",
         "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"},
                  "strict": true}, "verbosity": "low"}, "cache_salt": "s", "stream": true,
         "thaw": {"explain": true}, "parallel_tool_calls": false, "min_p": 0.1)"));
  EXPECT_EQ(call.max_tokens, 7U);
  EXPECT_EQ(call.seed, 5U);
  EXPECT_TRUE(call.logprobs);
  EXPECT_EQ(call.sampling.top_logprobs, 2);
  EXPECT_FLOAT_EQ(call.sampling.min_p, 0.1F);
  EXPECT_EQ(call.cache_salt, "s");
  EXPECT_EQ(call.cache.key, "key");
  EXPECT_TRUE(call.stream);
  EXPECT_TRUE(call.explain);
  EXPECT_TRUE(call.responses->truncates);
  EXPECT_FALSE(call.responses->store);
  EXPECT_EQ(call.output.kind, OutputKind::kJsonSchema);
  EXPECT_EQ(call.output.field, "text.format.schema");
  EXPECT_EQ(chat_of(call).template_kwargs["enable_thinking"], false);
  const json echo = echo_of(call);
  EXPECT_EQ(echo["temperature"].dump(), "0.3");
  EXPECT_EQ(echo["max_output_tokens"], 7);
  EXPECT_EQ(echo["max_tool_calls"], 3);
  EXPECT_EQ(echo["metadata"]["k"], "v");
  EXPECT_EQ(echo["truncation"], "auto");
  EXPECT_EQ(echo["reasoning"]["effort"], "none");
  EXPECT_EQ(echo["reasoning"]["summary"], "auto");
  EXPECT_EQ(echo["text"]["verbosity"], "low");
  EXPECT_EQ(echo["text"]["format"]["name"], "n");
  EXPECT_EQ(echo["top_logprobs"], 2);
  EXPECT_EQ(echo["parallel_tool_calls"], false);
  EXPECT_EQ(echo["instructions"], "I");
  EXPECT_EQ(echo["user"], "u");
}

TEST(ResponsesCall, WhatWasLeftOutIsRepeatedAsItCounts) {
  const json echo = echo_of(parsed_response(body("")));
  EXPECT_EQ(echo["tools"], json::array());
  EXPECT_EQ(echo["tool_choice"], "auto");
  EXPECT_EQ(echo["parallel_tool_calls"], true);
  EXPECT_EQ(echo["text"]["format"]["type"], "text");
  EXPECT_EQ(echo["temperature"], 1.0);
  EXPECT_EQ(echo["truncation"], "disabled");
  EXPECT_EQ(echo["metadata"], json::object());
  for (const char* name : {"instructions", "max_output_tokens", "previous_response_id", "user"})
    EXPECT_TRUE(echo[name].is_null()) << name;
}

TEST(ResponsesCall, ToolsAreThoseOfAChat) {
  const ApiCall call = parsed_response(body(std::string(R"("tools": [)") + kFlatWeather + "]"));
  ASSERT_EQ(call.tools.specs.size(), 1U);
  EXPECT_EQ(call.tools.specs[0].name, "weather");
  EXPECT_TRUE(call.tools.specs[0].strict);
  const ordered_json& shown = chat_of(call).tools;
  EXPECT_EQ(shown[0]["type"], "function");
  EXPECT_EQ(shown[0]["function"]["name"], "weather");
  EXPECT_EQ(shown[0]["function"]["parameters"]["type"], "object");
  EXPECT_EQ(echo_of(call)["tools"][0]["name"], "weather");
  EXPECT_TRUE(echo_of(parsed_response(
      body(R"("tools": [{"type": "function", "name": "f"}])")))["tools"][0]["parameters"]
                  .is_null());
}

TEST(ResponsesCall, ToolChoicesAreRead) {
  const std::string list = std::string(R"("tools": [)") + kFlatWeather +
                           R"(, {"type": "function", "name": "clock"}], "tool_choice": )";
  EXPECT_EQ(parsed_response(body(list + R"("required")")).tools.mode, ToolMode::kRequired);
  EXPECT_EQ(parsed_response(body(list + R"("auto")")).tools.mode, ToolMode::kAuto);
  const ApiCall none = parsed_response(body(list + R"("none")"));
  EXPECT_TRUE(none.hides_tools);
  EXPECT_TRUE(chat_of(none).tools.is_null());
  const ApiCall named = parsed_response(body(list + R"({"type": "function", "name": "clock"})"));
  EXPECT_EQ(named.tools.mode, ToolMode::kRequired);
  EXPECT_EQ(named.tools.allowed, std::vector<std::string>{"clock"});
  const ApiCall allowed =
      parsed_response(body(list + R"({"type": "allowed_tools", "mode": "required",
      "tools": [{"type": "function", "name": "weather"}]})"));
  EXPECT_EQ(allowed.tools.mode, ToolMode::kRequired);
  EXPECT_EQ(allowed.tools.allowed, std::vector<std::string>{"weather"});
}

TEST(ResponsesCall, WhatIsWrongIsNamed) {
  const auto input = [](const std::string& items) { return body("", items); };
  const std::pair<std::string, std::string> cases[] = {
      {"{}", "input"},
      {input("[]"), "input"},
      {input("3"), "input"},
      {input("[3]"), "input[0]"},
      {input(R"([{"role": "user"}])"), "input[0].content"},
      {input(R"([{"role": "robot", "content": "x"}])"), "input[0].role"},
      {input(R"([{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}])"),
       "input[0].content[0].type"},
      {input(R"([{"role": "user", "content": [{"type": "input_text"}]}])"),
       "input[0].content[0].text"},
      {input(R"([{"role": "user", "content": "x"}, {"type": "web_search_call", "id": "ws"}])"),
       "input[1].type"},
      {input(R"([{"type": "function_call", "name": "f", "arguments": "{}"}])"), "input[0].call_id"},
      {input(R"([{"type": "function_call", "call_id": "c", "arguments": "{}"}])"), "input[0].name"},
      {input(R"([{"type": "function_call_output", "call_id": "c"}])"), "input[0].output"},
      {input(R"([{"type": "item_reference"}])"), "input[0].id"},
      {body(R"("tools": [{"type": "web_search"}])"), "tools[0].type"},
      {body(R"("tools": [{"type": "function", "function": {"name": "f"}}])"), "tools[0].name"},
      {body(R"("tool_choice": "required")"), "tool_choice"},
      {body(R"("tool_choice": {"type": "file_search"})"), "tool_choice.type"},
      {body(R"("text": {"format": {"type": "xml"}})"), "text.format.type"},
      {body(R"("text": {"format": {"type": "json_schema", "name": "n"}})"), "text.format.schema"},
      {body(R"("text": {"verbosity": "loud"})"), "text.verbosity"},
      {body(R"("truncation": "some")"), "truncation"},
      {body(R"("include": ["everything"])"), "include[0]"},
      {body(R"("top_logprobs": 21)"), "top_logprobs"},
      {body(R"("max_output_tokens": 0)"), "max_output_tokens"},
      {body(R"("temperature": 3)"), "temperature"},
      {body(R"("metadata": {"k": 3})"), "metadata.k"},
      {body(R"("background": true, "store": false)"), "background"},
      {body(R"("conversation": "conv_1")"), "conversation"},
      {body(R"("prompt": {"id": "pmpt_1"})"), "prompt"},
      {body(R"("messages": [])"), "messages"},
      {body(R"("n": 2)"), "n"},
      {body(R"("reasoning": {"effort": 3})"), "reasoning.effort"},
      {body(R"("reasoning": {"summary": "short"})"), "reasoning.summary"},
      {body(R"("reasoning": {"generate_summary": 1})"), "reasoning.generate_summary"},
      {body(R"("previous_response_id": 3)"), "previous_response_id"},
  };
  for (const auto& [text, param] : cases) {
    const auto result = parse_response(text);
    const auto* error = std::get_if<ApiError>(&result);
    ASSERT_NE(error, nullptr) << text;
    EXPECT_EQ(error->status, 400) << text;
    EXPECT_EQ(error->param, param) << text << ": " << error->message;
  }
  const auto hosted = parse_response(body(R"("tools": [{"type": "web_search"}])"));
  EXPECT_NE(std::get<ApiError>(hosted).message.find("web_search"), std::string::npos);
}

TEST(ResponsesCall, BreakpointsAreThoseOfTheMessage) {
  ApiCall call = parsed_response(body(R"("instructions": "I")", R"([{"role": "user", "content": [
      {"type": "input_text", "text": "abc", "prompt_cache_breakpoint": {"mode": "explicit"}},
      {"type": "input_text", "text": "d"}]}])"));
  EXPECT_GT(call.cache.ttl.count(), 0);
  const ByteCodec codec;
  const auto prompt = prepare_responses(call, {}, codec, 4096);
  EXPECT_EQ(std::get<PreparedPrompt>(prompt).kept_tokens,
            std::string("system: I\nuser: abc").size());
  const auto wrong = parse_response(body("", R"([{"role": "user", "content": [
      {"type": "input_text", "text": "abc", "prompt_cache_breakpoint": 1}]}])"));
  EXPECT_EQ(std::get<ApiError>(wrong).param, "input[0].content[0].prompt_cache_breakpoint");
}

TEST(ResponsesCall, QueriesAreRead) {
  const auto view = std::get<ResponseView>(parse_response_view("stream=true&starting_after=7&x=y"));
  EXPECT_TRUE(view.stream);
  EXPECT_EQ(view.starting_after, 7);
  EXPECT_FALSE(std::get<ResponseView>(parse_response_view("")).stream);
  EXPECT_TRUE(std::holds_alternative<ApiError>(parse_response_view("stream=1")));
  EXPECT_TRUE(std::holds_alternative<ApiError>(parse_response_view("starting_after=-2")));
  const auto page = std::get<ItemsPage>(parse_items_page("limit=3&order=asc&after=msg_1"));
  EXPECT_EQ(page.limit, 3U);
  EXPECT_FALSE(page.newest_first);
  EXPECT_EQ(page.after, "msg_1");
  for (const char* wrong : {"limit=0", "limit=101", "limit=x", "order=up"})
    EXPECT_TRUE(std::holds_alternative<ApiError>(parse_items_page(wrong))) << wrong;
}

TEST(ResponsesItems, IdsNameTheirResponse) {
  const std::string response = "resp_0123456789abcdef0123456789abcdef";
  for (const ItemKind kind :
       {ItemKind::kMessage, ItemKind::kCall, ItemKind::kCallOutput, ItemKind::kReasoning})
    EXPECT_EQ(response_of_item(item_id(kind, response, 'o', 12)), response);
  EXPECT_EQ(item_id(ItemKind::kCall, response, 'i', 3), "fc_0123456789abcdef0123456789abcdefi3");
  for (const char* other : {"", "msg_", "msg_123", "msg_zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzo1"})
    EXPECT_EQ(response_of_item(other), "") << other;
}

/// A past whose reply was generated as `reply`, after a question "q".
ResponsesPast past_of(const std::string& prompt, const std::string& reply,
                      std::vector<std::string> messages, bool has_instructions = false) {
  auto state = std::make_shared<SessionState>();
  state->tokens = byte_tokens(prompt + reply);
  state->messages = std::move(messages);
  ResponsesPast past;
  past.line = std::move(state);
  past.has_instructions = has_instructions;
  return past;
}

TEST(ResponsesPrompt, GoesOnWithThePreviousConversation) {
  const ResponsesPast past =
      past_of("system: Old.\nuser: q\nassistant:", "r",
              {R"({"role":"system","content":"Old."})", R"({"role":"user","content":"q"})",
               R"({"role":"assistant","content":"r"})"},
              /*has_instructions=*/true);
  ApiCall same = parsed_response(body(R"("instructions": "Old.", "previous_response_id": "r1")"));
  EXPECT_EQ(prompt_text(same, past), "system: Old.\nuser: q\nassistant:r\nuser: Hello\nassistant:");
  ApiCall without = parsed_response(body(R"("previous_response_id": "r1")"));
  EXPECT_EQ(prompt_text(without, past), "user: q\nassistant:r\nuser: Hello\nassistant:")
      << "instructions are not carried over";
  ApiCall nothing = parsed_response(R"({"previous_response_id": "r1"})");
  EXPECT_EQ(prompt_text(nothing, past), "user: q\nassistant:r\nassistant:");
}

/// Tokens above the bytes stand for two of them, as a model's own choice of tokens may.
class PairCodec : public TextCodec {
 public:
  static constexpr TokenId kPair = 300;  // "ab"

  Result<std::vector<TokenId>> encode_chat(const ChatPrompt& prompt) const override {
    return bytes_.encode_chat(prompt);
  }
  Result<std::vector<TokenId>> encode_after(const ChatPrompt& prompt,
                                            std::size_t index) const override {
    return bytes_.encode_after(prompt, index);
  }
  std::vector<TokenId> encode_text(std::string_view text, bool add_special) const override {
    return bytes_.encode_text(text, add_special);
  }
  std::string decode(std::span<const TokenId> tokens, bool keep_special) const override {
    std::string text;
    for (const TokenId token : tokens)
      text += token == kPair ? "ab" : bytes_.decode({&token, 1}, keep_special);
    return text;
  }
  std::unique_ptr<TextStream> new_stream(bool keep_special) const override {
    return bytes_.new_stream(keep_special);
  }
  int vocab_size() const override { return 301; }

 private:
  ByteCodec bytes_;
};

TEST(ResponsesPrompt, TheModelsOwnTokensAreKept) {
  const PairCodec codec;
  std::vector<TokenId> line = byte_tokens("user: q\nassistant:x");
  line.push_back(PairCodec::kPair);
  const std::vector<TokenId> rendered =
      byte_tokens("user: q\nassistant:xab\nuser: more\nassistant:");
  const auto joined = put_on_line(line, rendered, codec);
  ASSERT_TRUE(joined);
  EXPECT_EQ((*joined)[line.size() - 1], PairCodec::kPair);
  EXPECT_EQ(joined->size(), rendered.size() - 1);
  EXPECT_EQ(codec.decode(*joined, true), codec.decode(rendered, true));
  EXPECT_EQ(put_on_line(rendered, rendered, codec), rendered);
}

TEST(ResponsesPrompt, ALineThatTheTemplateWritesDifferentlyIsNotKept) {
  const PairCodec codec;
  std::vector<TokenId> line = byte_tokens("q:");
  line.push_back(PairCodec::kPair);
  EXPECT_FALSE(put_on_line(line, byte_tokens("q:ac"), codec));
  EXPECT_FALSE(put_on_line(line, byte_tokens("q:a"), codec)) << "it ends before the line";
  EXPECT_FALSE(put_on_line(line, byte_tokens("other"), codec));
  // The line ends inside of a token.
  std::vector<TokenId> half = byte_tokens("q:");
  half.push_back(PairCodec::kPair);
  EXPECT_FALSE(put_on_line(byte_tokens("q:a"), half, codec));
}

TEST(ResponsesPrompt, TruncationLeavesTheOldestOut) {
  const std::string items =
      R"([{"role": "user", "content": "one"}, {"role": "assistant", "content": "1"},
          {"role": "user", "content": "two"},
          {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
          {"type": "function_call_output", "call_id": "c", "output": "out"},
          {"role": "user", "content": "three"}])";
  const std::string rest = R"("instructions": "I", "max_output_tokens": 4, "truncation": )";
  ApiCall disabled = parsed_response(body(rest + R"("disabled")", items));
  EXPECT_EQ(prompt_text(disabled, {}, 60), "error: input");
  ApiCall all = parsed_response(body(rest + R"("auto")", items));
  const std::string whole = prompt_text(all, {}, 400);
  EXPECT_NE(whole.find("one"), std::string::npos);
  ApiCall some = parsed_response(body(rest + R"("auto")", items));
  const std::string part = prompt_text(some, {}, 60);
  EXPECT_TRUE(part.starts_with("system: I\n")) << part;
  EXPECT_TRUE(part.ends_with("user: three\nassistant:")) << part;
  EXPECT_EQ(part.find("one"), std::string::npos) << part;
  EXPECT_LE(part.size(), 56U);
  ApiCall tight = parsed_response(body(rest + R"("auto")", items));
  EXPECT_EQ(prompt_text(tight, {}, 40), "system: I\nuser: three\nassistant:");
  ApiCall none = parsed_response(body(rest + R"("auto")", items));
  EXPECT_EQ(prompt_text(none, {}, 20), "error: input");
}

TEST(ResponsesPrompt, ReferencesArePutIn) {
  ApiCall call = parsed_response(body("", R"([{"role": "user", "content": "q"},
      {"type": "item_reference", "id": "msg_1"}, {"id": "fc_1"}])"));
  ResponsesPast past;
  past.items["msg_1"] = R"({"id":"msg_1","type":"message","role":"assistant","status":"completed",)"
                        R"("content":[{"type":"output_text","annotations":[],"text":"r"}]})";
  auto missing = resolve_references(call, past);
  ASSERT_TRUE(missing);
  EXPECT_EQ(missing->status, 404);
  EXPECT_EQ(missing->param, "input[2].id");
  past.items["fc_1"] =
      R"({"id":"fc_1","type":"function_call","call_id":"c","name":"f","arguments":"{}"})";
  ASSERT_FALSE(resolve_references(call, past));
  EXPECT_EQ(prompt_text(call), "user: q\nassistant:r\nassistant:");
  EXPECT_EQ(chat_of(call).messages[1]["tool_calls"][0]["id"], "c");
  EXPECT_EQ(call.responses->input[1].shown["id"], "msg_1");
}

TEST(ResponsesPrompt, WhatTheTemplateRefusesIsAnErrorOfTheInput) {
  ApiCall call = parsed_response(body(R"("previous_response_id": "r")"));
  const ResponsesPast past = past_of("", "", {R"({"role":"refused","content":""})"});
  EXPECT_EQ(prompt_text(call, past), "error: input");
}

}  // namespace
}  // namespace thaw::coalescer
