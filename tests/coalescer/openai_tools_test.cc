#include <string>
#include <variant>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "coalescer/openai/call.h"
#include "coalescer/openai/tool_grammar.h"
#include "coalescer/openai/tool_prompt.h"
#include "tests/coalescer/http_client.h"

namespace thaw::coalescer {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr const char* kWeather =
    R"({"type": "function", "function": {"name": "weather", "description": "d", "strict": true,)"
    R"( "parameters": {"type": "object", "properties": {"b": {"type": "string"}, "a": {}},)"
    R"( "required": ["b"]}}})";
constexpr const char* kClock = R"({"type": "function", "function": {"name": "clock"}})";

std::string tools(const std::string& rest = "") {
  return R"("tools": [)" + std::string(kWeather) + "," + kClock + "]" +
         (rest.empty() ? "" : ", " + rest);
}

ApiResult<ApiCall> parse_tools(const std::string& rest) {
  return parse_call(ApiKind::kChat, chat_body(rest), ParseLimits{8, 258, nullptr});
}

ApiCall parsed_tools(const std::string& rest) {
  auto result = parse_tools(rest);
  if (const auto* error = std::get_if<ApiError>(&result)) {
    ADD_FAILURE() << rest << ": " << error->message;
    return {};
  }
  return std::move(std::get<ApiCall>(result));
}

/// The `param` of the error; "" where there is none.
std::string refused(const std::string& rest) {
  const auto result = parse_tools(rest);
  const auto* error = std::get_if<ApiError>(&result);
  if (error == nullptr) return "";
  EXPECT_EQ(error->status, 400);
  EXPECT_NE(error->message.find('`'), std::string::npos) << error->message;
  return error->param;
}

TEST(Tools, AreRead) {
  const ApiCall call = parsed_tools(tools());
  ASSERT_EQ(call.tools.specs.size(), 2U);
  EXPECT_EQ(call.tools.specs[0].name, "weather");
  EXPECT_TRUE(call.tools.specs[0].strict);
  EXPECT_EQ(call.tools.specs[0].parameters["properties"].begin().key(), "b");  // order is kept
  EXPECT_EQ(call.tools.specs[1].parameters,
            ordered_json::parse(R"({"type":"object","properties":{}})"));
  EXPECT_EQ(call.tools.mode, ToolMode::kAuto);
  EXPECT_FALSE(call.tools.parallel);
  EXPECT_EQ(std::get<ChatPrompt>(call.prompts[0]).tools.size(), 2U);
  EXPECT_EQ(tools_of_list(std::get<ChatPrompt>(call.prompts[0]).tools.dump()).size(), 2U);
}

TEST(Tools, NoneAreNone) {
  for (const char* rest :
       {R"("tools": [])", R"("tools": null)", R"("tools": [], "tool_choice": "auto")",
        R"("tool_choice": "none")", R"("functions": [])"}) {
    const ApiCall call = parsed_tools(rest);
    EXPECT_TRUE(call.tools.specs.empty());
    EXPECT_TRUE(std::get<ChatPrompt>(call.prompts[0]).tools.is_null());
  }
  EXPECT_TRUE(std::get<ChatPrompt>(parsed_tools(tools(R"("tool_choice": "none")")).prompts[0])
                  .tools.is_null());
}

TEST(Tools, ChoicesAreRead) {
  EXPECT_EQ(parsed_tools(tools(R"("tool_choice": "required")")).tools.mode, ToolMode::kRequired);
  const ApiCall named =
      parsed_tools(tools(R"("tool_choice": {"type": "function", "function": {"name": "clock"}})"));
  EXPECT_EQ(named.tools.mode, ToolMode::kRequired);
  EXPECT_EQ(named.tools.allowed, std::vector<std::string>{"clock"});
  EXPECT_EQ(named.tools.parallel, false);
  const ApiCall some = parsed_tools(tools(
      R"("tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": )"
      R"([{"type": "function", "function": {"name": "weather"}}, {"type": "function", "name": "clock"}]}},)"
      R"("parallel_tool_calls": true)"));
  EXPECT_EQ(some.tools.allowed.size(), 2U);
  EXPECT_EQ(some.tools.parallel, true);
  const ApiCall old = parsed_tools(
      R"("functions": [{"name": "clock", "parameters": {}}], "function_call": {"name": "clock"})");
  EXPECT_TRUE(old.tools.legacy);
  EXPECT_EQ(old.tools.mode, ToolMode::kRequired);
  EXPECT_EQ(std::get<ChatPrompt>(old.prompts[0]).tools[0]["type"], "function");
  EXPECT_EQ(parsed_tools(R"("thaw": {"tool_auto": "eager"})").tools.eager, true);
}

TEST(Tools, ErrorsNameTheField) {
  EXPECT_EQ(refused(R"("tools": {})"), "tools");
  EXPECT_EQ(refused(R"("tools": [1])"), "tools[0]");
  EXPECT_EQ(refused(R"("tools": [{"type": "web_search"}])"), "tools[0].type");
  EXPECT_EQ(refused(R"("tools": [{"type": "function"}])"), "tools[0].function");
  EXPECT_EQ(refused(R"("tools": [{"type": "function", "function": {}}])"),
            "tools[0].function.name");
  EXPECT_EQ(refused(R"("tools": [{"type": "function", "function": {"name": "a b"}}])"),
            "tools[0].function.name");
  EXPECT_EQ(
      refused(R"("tools": [{"type": "function", "function": {"name": "a", "parameters": 3}}])"),
      "tools[0].function.parameters");
  EXPECT_EQ(refused(R"("tools": [)" + std::string(kClock) + "," + kClock + "]"),
            "tools[1].function.name");
  EXPECT_EQ(refused(tools(R"("tool_choice": "maybe")")), "tool_choice");
  EXPECT_EQ(refused(tools(R"("tool_choice": 3)")), "tool_choice");
  EXPECT_EQ(refused(tools(R"("tool_choice": {"type": "function", "function": {"name": "x"}})")),
            "tool_choice");
  EXPECT_EQ(refused(tools(R"("tool_choice": {"type": "function"})")), "tool_choice.function.name");
  EXPECT_EQ(refused(R"("tool_choice": "required")"), "tool_choice");
  // The name that has no say here is as right or wrong as ever.
  EXPECT_EQ(refused(R"("function_call": {"name": ""})"), "function_call.name");
  EXPECT_EQ(refused(tools(R"("function_call": "maybe")")), "function_call");
  EXPECT_EQ(refused(tools(R"("parallel_tool_calls": 1)")), "parallel_tool_calls");
  EXPECT_EQ(refused(tools(R"("functions": [{"name": "x"}])")), "functions");
  EXPECT_EQ(refused(R"("thaw": {"tool_auto": "x"})"), "thaw.tool_auto");
}

TEST(OutputFormat, IsRead) {
  EXPECT_EQ(parsed_tools("").output.kind, OutputKind::kText);
  EXPECT_EQ(parsed_tools(R"("response_format": {"type": "text"})").output.kind, OutputKind::kText);
  EXPECT_EQ(parsed_tools(R"("response_format": {"type": "json_object"})").output.kind,
            OutputKind::kJsonObject);
  const OutputFormat schema =
      parsed_tools(
          R"("response_format": {"type": "json_schema", "json_schema": {"name": "n", "strict": true,)"
          R"( "schema": {"type": "integer"}}})")
          .output;
  EXPECT_EQ(schema.kind, OutputKind::kJsonSchema);
  EXPECT_EQ(schema.schema["type"], "integer");
  EXPECT_EQ(parsed_tools(R"("guided_json": "{\"type\": \"null\"}")").output.schema["type"], "null");
  EXPECT_EQ(parsed_tools(R"("structured_outputs": {"json": {"type": "null"}})").output.kind,
            OutputKind::kJsonSchema);
  EXPECT_EQ(parsed_tools(R"("structured_outputs": {"regex": "[ab]"})").output.pattern, "[ab]");
  EXPECT_EQ(parsed_tools(R"("guided_choice": ["a", "b"])").output.choices.size(), 2U);
  EXPECT_EQ(parsed_tools(R"("guided_grammar": "root ::= \"x\"")").output.kind,
            OutputKind::kGrammar);
  EXPECT_EQ(parsed_tools(R"("structured_outputs": {"json_object": true})").output.kind,
            OutputKind::kJsonObject);
  EXPECT_EQ(parsed_tools(
                R"("response_format": {"type": "structural_tag", "format": {"type": "any_text"}})")
                .output.kind,
            OutputKind::kStructuralTag);
}

TEST(OutputFormat, ErrorsNameTheField) {
  EXPECT_EQ(refused(R"("response_format": 1)"), "response_format");
  EXPECT_EQ(refused(R"("response_format": {"type": "xml"})"), "response_format.type");
  EXPECT_EQ(refused(R"("response_format": {"format": {}})"), "response_format.type");
  EXPECT_EQ(refused(R"("response_format": {"type": "json_schema"})"),
            "response_format.json_schema");
  EXPECT_EQ(refused(R"("response_format": {"type": "json_schema", "json_schema": {"name": "n"}})"),
            "response_format.json_schema.schema");
  EXPECT_EQ(
      refused(R"("response_format": {"type": "json_schema", "json_schema": {"schema": [1]}})"),
      "response_format.json_schema.schema");
  EXPECT_EQ(refused(R"("guided_json": "nope")"), "guided_json");
  EXPECT_EQ(refused(R"("guided_regex": "")"), "guided_regex");
  EXPECT_EQ(refused(R"("guided_choice": [])"), "guided_choice");
  EXPECT_EQ(refused(R"("guided_choice": [1])"), "guided_choice");
  EXPECT_EQ(refused(R"("structured_outputs": {"grammar": 1})"), "structured_outputs.grammar");
  EXPECT_EQ(refused(R"("guided_regex": "a", "guided_choice": ["a"])"), "guided_choice");
  EXPECT_EQ(
      refused(
          R"("response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"})"),
      "structured_outputs.regex");
}

TEST(ToolForm, FollowsFromTheTemplate) {
  EXPECT_EQ(form_of_template("{% for m in messages %}{{ m.content }} no tools {% endfor %}").tools,
            ToolForm::kHermes);
  EXPECT_FALSE(form_of_template("{{ messages }} tools {{ my_tools }}").template_has_tools);
  const auto form = [](const std::string& marker) {
    return form_of_template("{%- if tools %}" + marker + "{% endif %}").tools;
  };
  EXPECT_TRUE(form_of_template("{%- if tools %}{% endif %}").template_has_tools);
  EXPECT_EQ(form("<tool_call>\\n{"), ToolForm::kHermes);
  EXPECT_EQ(form("<tool_call>[{"), ToolForm::kHermesList);
  EXPECT_EQ(form("<tool_call>\\n<function=x>"), ToolForm::kFunctionTag);
  EXPECT_EQ(form("[TOOL_CALLS]"), ToolForm::kMistral);
  EXPECT_EQ(form("Environment: ipython"), ToolForm::kLlama3Json);
  EXPECT_EQ(form("<|tool_call_start|>"), ToolForm::kPythonic);
  EXPECT_FALSE(form_of_template("{{ tools }}").thinks());
  EXPECT_EQ(form_of_template("{{ '<think>\\n\\n</think>' }}").think_end, "</think>");
}

/// The grammar's format for a call; `form` is a hermes model's with tools unless it says else.
json format_of(const std::string& rest, ChatForm form = {ToolForm::kHermes, true, "", ""},
               const std::string& prompt = "x") {
  ByteCodec codec;
  codec.chat_form = std::move(form);
  const ApiCall call = parsed_tools(rest);
  auto plan = plan_reply(call, byte_tokens(prompt), "", false, codec);
  if (const auto* error = std::get_if<ApiError>(&plan)) {
    ADD_FAILURE() << error->message;
    return {};
  }
  const std::string& grammar = std::get<ReplyPlan>(plan).grammar;
  if (grammar.empty()) return nullptr;
  const json document = json::parse(grammar);
  EXPECT_EQ(document["type"], "structural_tag");
  return document["format"];
}

TEST(ToolGrammar, AutoIsFreeUntilTheTrigger) {
  EXPECT_TRUE(format_of("").is_null());
  EXPECT_TRUE(format_of(tools(R"("tool_choice": "none")")).is_null());
  const json format = format_of(tools());
  EXPECT_EQ(format["type"], "triggered_tags");
  EXPECT_EQ(format["triggers"], json::parse(R"(["<tool_call>"])"));
  ASSERT_EQ(format["tags"].size(), 2U);
  EXPECT_EQ(format["tags"][0]["begin"], "<tool_call>\n{\"name\": \"weather\", \"arguments\": ");
  EXPECT_EQ(format["tags"][0]["content"]["json_schema"]["required"][0], "b");
  EXPECT_EQ(format["tags"][0]["end"], "}\n</tool_call>");
  EXPECT_EQ(format["at_least_one"], false);
  EXPECT_EQ(format["stop_after_first"], false);
  EXPECT_EQ(format_of(tools(R"("parallel_tool_calls": false)"))["stop_after_first"], true);
  // A model without tools of its own calls once unless more is asked for.
  const ChatForm plain{ToolForm::kHermes, false, "", ""};
  EXPECT_EQ(format_of(tools(), plain)["stop_after_first"], true);
  EXPECT_EQ(format_of(tools(R"("parallel_tool_calls": true)"), plain)["stop_after_first"], false);
}

TEST(ToolGrammar, ForcedCallsAreNothingElse) {
  const json any = format_of(tools(R"("tool_choice": "required")"));
  EXPECT_EQ(any["type"], "tags_with_separator");
  EXPECT_EQ(any["at_least_one"], true);
  EXPECT_EQ(any["tags"].size(), 2U);
  const json one =
      format_of(tools(R"("tool_choice": {"type":"function","function":{"name":"clock"}})"));
  ASSERT_EQ(one["tags"].size(), 1U);
  EXPECT_EQ(one["stop_after_first"], true);
  EXPECT_EQ(one["tags"][0]["content"]["json_schema"]["type"], "object");
  // Eager: until a tool has answered (see http_tools_test).
  EXPECT_EQ(format_of(tools(R"("thaw": {"tool_auto": "eager"})"))["type"], "tags_with_separator");
}

TEST(ToolGrammar, ACallOrTheSchema) {
  const json both = format_of(tools(R"("response_format": {"type": "json_schema", "json_schema": )"
                                    R"({"name": "n", "schema": {"type": "integer"}}})"));
  EXPECT_EQ(both["type"], "or");
  EXPECT_EQ(both["elements"][0]["type"], "tags_with_separator");
  EXPECT_EQ(both["elements"][1]["json_schema"]["type"], "integer");
}

TEST(ToolGrammar, OutputForms) {
  EXPECT_EQ(format_of(R"("response_format": {"type": "json_object"})")["json_schema"]["type"],
            "object");
  EXPECT_EQ(format_of(R"("guided_regex": "a+")"),
            json::parse(R"({"type":"regex","pattern":"a+"})"));
  EXPECT_EQ(format_of(R"("guided_grammar": "root ::= [a]")")["grammar"], "root ::= [a]");
  EXPECT_EQ(format_of(R"("guided_choice": ["a", "b"])")["elements"][1]["value"], "b");
  EXPECT_EQ(format_of(R"("guided_choice": ["a"])")["value"], "a");
}

TEST(ToolGrammar, BeginsBehindTheThinking) {
  const ChatForm form{ToolForm::kHermes, true, "<think>", "</think>"};
  const std::string wish = R"("guided_regex": "a+")";
  EXPECT_EQ(format_of(wish, form, "assistant:<think>\n\n</think>\n\n")["type"], "regex");
  const json open = format_of(wish, form, "assistant:\n<think>\n");
  EXPECT_EQ(open["type"], "sequence");
  EXPECT_EQ(open["elements"][0]["begin"], "");
  EXPECT_EQ(open["elements"][0]["end"], "</think>");
  EXPECT_EQ(open["elements"][2]["type"], "regex");
  const json may = format_of(wish, form, "assistant:");
  EXPECT_EQ(may["type"], "or");
  EXPECT_EQ(may["elements"][0]["elements"][0]["begin"], "<think>");
  EXPECT_EQ(may["elements"][1]["type"], "regex");
  EXPECT_EQ(format_of(tools(), form, "assistant:")["elements"][1]["excludes"][0], "<think>");
}

TEST(ToolGrammar, EveryFormHasItsOwnText) {
  const std::string must = tools(R"("tool_choice": "required")");
  const auto of = [&](ToolForm form, const std::string& rest) {
    return format_of(rest, {form, true, "", ""});
  };
  EXPECT_EQ(of(ToolForm::kLlama3Json, must)["tags"][1]["begin"],
            R"({"name": "clock", "parameters": )");
  EXPECT_EQ(of(ToolForm::kLlama3Json, must)["stop_after_first"], true);  // one at a time
  EXPECT_EQ(of(ToolForm::kHermesList, must)["elements"][0]["value"], "<tool_call>[");
  EXPECT_EQ(of(ToolForm::kHermesList, tools())["tags"][0]["begin"], "<tool_call>[");
  EXPECT_EQ(of(ToolForm::kMistral, must)["elements"][0]["value"], "[TOOL_CALLS][");
  EXPECT_EQ(of(ToolForm::kFunctionTag, must)["tags"][0]["content"]["style"], "qwen_xml");
  const json pythonic = of(ToolForm::kPythonic, must);
  EXPECT_EQ(pythonic["elements"][1]["tags"][0]["begin"], "weather(");
  EXPECT_EQ(pythonic["elements"][1]["tags"][0]["content"]["elements"][0]["elements"][0]["value"],
            "b=");
  EXPECT_EQ(of(ToolForm::kPythonic, tools())["type"], "or");
}

/// Each argument of a pythonic call has its own copy of what schemas may refer to: 60 MB here.
TEST(ToolGrammar, OfMoreBytesThanFitIsRefused) {
  std::string properties;
  for (int i = 0; i < 2000; ++i)
    properties += (i > 0 ? ",\"k" : "\"k") + std::to_string(i) + R"(": {})";
  const std::string rest =
      R"("tools": [{"function": {"name": "f", "parameters": {"$defs": {"d": ")" +
      std::string(30000, 'x') + R"("}, "properties": {)" + properties + "}}}}]";
  ByteCodec codec;
  codec.chat_form = {ToolForm::kPythonic, true, "", ""};
  const ApiCall call = parsed_tools(rest);
  const auto plan = plan_reply(call, byte_tokens("x"), "", false, codec);
  ASSERT_TRUE(std::holds_alternative<ApiError>(plan));
  EXPECT_EQ(std::get<ApiError>(plan).status, 400);
  EXPECT_EQ(std::get<ApiError>(plan).param, "tools");
  EXPECT_THAT(std::get<ApiError>(plan).message, testing::HasSubstr("more than 1048576 bytes"));
  ReplyShape shape;
  shape.tools = &call.tools;
  EXPECT_LT(grammar_document(shape, codec.chat_form).size(), 4 * kMaxGrammarBytes);
}

TEST(ToolPrompt, DescribesToolsWhereTheTemplateDoesNot) {
  ChatPrompt prompt;
  prompt.messages = ordered_json::parse(R"([
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "type": "function",
      "function": {"name": "clock", "arguments": {"a": 1}}}]},
    {"role": "tool", "tool_call_id": "1", "content": "noon"}])");
  EXPECT_TRUE(speaks_of_tools(prompt));
  prompt.tools = ordered_json::parse("[" + std::string(kClock) + "]");
  const ChatPrompt plain = tools_as_text(prompt);
  ASSERT_EQ(plain.messages.size(), 4U);
  EXPECT_EQ(plain.messages[0]["role"], "system");
  EXPECT_NE(plain.messages[0]["content"].get<std::string>().find("\"clock\""), std::string::npos);
  EXPECT_EQ(plain.messages[2]["content"],
            "<tool_call>\n{\"name\":\"clock\",\"arguments\":{\"a\":1}}\n</tool_call>");
  EXPECT_FALSE(plain.messages[2].contains("tool_calls"));
  EXPECT_EQ(plain.messages[3]["role"], "user");
  EXPECT_EQ(plain.messages[3]["content"], "<tool_response>\nnoon\n</tool_response>");
  EXPECT_TRUE(plain.tools.is_null());

  prompt.messages = ordered_json::parse(R"([{"role": "system", "content": "Be kind."},
                                            {"role": "user", "content": "hi"}])");
  const std::string system = tools_as_text(prompt).messages[0]["content"];
  EXPECT_EQ(system.substr(0, 10), "Be kind.\n\n");
  EXPECT_EQ(tools_as_text(prompt).messages.size(), 2U);
}

TEST(Messages, HistoryIsWhatTemplatesExpect) {
  const std::string body = R"({"messages": [
    {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}], "reasoning": "why",
     "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}},
                    {"id": "2", "type": "function", "function": {"name": "g", "arguments": ""}}]},
    {"role": "assistant", "content": null, "function_call": {"name": "f", "arguments": "{}"}},
    {"role": "function", "name": "f", "content": "1"}], "reasoning_effort": "none"})";
  const auto result = parse_call(ApiKind::kChat, body, ParseLimits{8, 258, nullptr});
  ASSERT_TRUE(std::holds_alternative<ApiCall>(result)) << std::get<ApiError>(result).message;
  const auto& prompt = std::get<ChatPrompt>(std::get<ApiCall>(result).prompts[0]);
  const auto& first = prompt.messages[0];
  EXPECT_EQ(first["content"], "no");
  EXPECT_EQ(first["reasoning_content"], "why");
  EXPECT_EQ(first["tool_calls"][0]["function"]["arguments"]["a"], 1);
  EXPECT_EQ(first["tool_calls"][1]["function"]["arguments"], ordered_json::object());
  EXPECT_TRUE(prompt.messages[1]["tool_calls"][0]["function"]["arguments"].is_object());
  EXPECT_EQ(prompt.messages[2]["role"], "tool");
  EXPECT_EQ(prompt.template_kwargs["enable_thinking"], false);
  EXPECT_EQ(prompt.template_kwargs["reasoning_effort"], "none");
}

}  // namespace
}  // namespace thaw::coalescer
