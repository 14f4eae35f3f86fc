// Tool calls, structured output and thinking over HTTP, with a fake that writes what a model would.

#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "tests/coalescer/http_client.h"

namespace thaw::coalescer {
namespace {

using nlohmann::json;

constexpr const char* kCall =
    "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Bonn\"}}\n</tool_call>";
constexpr const char* kTools =
    R"("tools": [{"type": "function", "function": {"name": "weather", "parameters": )"
    R"({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}])";

std::shared_ptr<ServedModels> models(ChatForm form) {
  auto codec = std::make_shared<ByteCodec>();
  codec->chat_form = std::move(form);
  ServedModel model;
  model.names = {"fake-model"};
  model.max_model_len = 4096;
  model.codec = codec;
  auto table = std::make_shared<ServedModels>();
  EXPECT_TRUE(table->add(std::move(model)));
  return table;
}

const ChatForm kHermes{ToolForm::kHermes, true, "", ""};
const ChatForm kThinker{ToolForm::kHermes, true, "<think>", "</think>"};

json answer_of(RunningServer& server, const std::string& rest) {
  const ClientReply reply = server.post(kChatPath, chat_body(rest));
  EXPECT_EQ(reply.status, 200) << reply.body;
  return json::parse(reply.body);
}

/// The deltas of a stream, and its finish reason.
struct Streamed {
  std::vector<json> deltas;
  std::string finish_reason;
  std::string content;
  std::string reasoning;
  std::vector<std::string> names;
  std::vector<std::string> arguments;
  std::size_t num_logprobs = 0;
};

Streamed stream_of(RunningServer& server, const std::string& rest) {
  const ClientReply reply = server.post(kChatPath, chat_body(rest + R"(, "stream": true)"));
  EXPECT_EQ(reply.status, 200) << reply.body;
  Streamed streamed;
  for (const std::string& data : sse_data(reply.body)) {
    if (data == "[DONE]") continue;
    const json chunk = json::parse(data);
    const json& choice = chunk["choices"].at(0);
    const json& delta = choice["delta"];
    streamed.deltas.push_back(delta);
    if (!choice["finish_reason"].is_null()) streamed.finish_reason = choice["finish_reason"];
    if (!choice["logprobs"].is_null())
      streamed.num_logprobs += choice["logprobs"]["content"].size();
    streamed.content += delta.value("content", "");
    EXPECT_EQ(delta.value("reasoning", ""), delta.value("reasoning_content", ""));
    streamed.reasoning += delta.value("reasoning", "");
    for (const json& call : delta.value("tool_calls", json::array())) {
      const std::size_t index = call.at("index");
      if (index == streamed.names.size()) {
        EXPECT_EQ(call.at("type"), "function");
        EXPECT_FALSE(call.at("id").get<std::string>().empty());
        streamed.names.push_back(call.at("function").at("name"));
        streamed.arguments.emplace_back();
      } else {
        EXPECT_FALSE(call["function"].contains("name"));  // the name comes once
        EXPECT_FALSE(call.contains("id"));
      }
      streamed.arguments.at(index) += call["function"].value("arguments", "");
    }
  }
  return streamed;
}

TEST(HttpTools, AForcedCallIsAMessageWithoutContent) {
  FakeBackend backend;
  backend.reply = kCall;
  RunningServer server(&backend, models(kHermes));
  const json body = answer_of(server, std::string(kTools) + R"(, "tool_choice": "required")");
  const json& choice = body["choices"][0];
  EXPECT_EQ(choice["finish_reason"], "tool_calls");
  EXPECT_TRUE(choice["message"]["content"].is_null());
  const json& call = choice["message"]["tool_calls"].at(0);
  EXPECT_EQ(call["type"], "function");
  EXPECT_EQ(call["id"].get<std::string>().rfind("call_", 0), 0U);
  EXPECT_EQ(call["function"]["name"], "weather");
  EXPECT_EQ(call["function"]["arguments"], R"({"city": "Bonn"})");
  const json grammar = json::parse(backend.wait_for_request(1).grammar);
  EXPECT_EQ(grammar["format"]["type"], "tags_with_separator");
}

TEST(HttpTools, StreamsFragmentsOfTheArguments) {
  FakeBackend backend;
  backend.reply = std::string("Let me see.\n") + kCall + "\n" + kCall;
  RunningServer server(&backend, models(kHermes));
  const Streamed streamed = stream_of(server, std::string(kTools) + R"(, "logprobs": true)");
  EXPECT_EQ(streamed.finish_reason, "tool_calls");
  EXPECT_EQ(streamed.content, "Let me see.");
  EXPECT_EQ(streamed.names, (std::vector<std::string>{"weather", "weather"}));
  for (const std::string& arguments : streamed.arguments)
    EXPECT_EQ(arguments, R"({"city": "Bonn"})");
  EXPECT_EQ(streamed.num_logprobs, backend.reply.size());  // one for each token, calls included
  EXPECT_GT(streamed.deltas.size(), 20U);  // in fragments
}

TEST(HttpTools, ACutCallIsWhatCameOfIt) {
  FakeBackend backend;
  backend.reply = kCall;
  RunningServer server(&backend, models(kHermes));
  const std::string rest = std::string(kTools) + R"(, "tool_choice": "required", "max_tokens": 60)";
  const Streamed streamed = stream_of(server, rest);
  EXPECT_EQ(streamed.finish_reason, "length");
  ASSERT_EQ(streamed.arguments.size(), 1U);
  EXPECT_EQ(streamed.arguments[0],
            std::string(R"({"city": "Bonn"})").substr(0, streamed.arguments[0].size()));
  const json body = answer_of(server, rest);
  EXPECT_EQ(body["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(body["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"],
            streamed.arguments[0]);
}

TEST(HttpTools, WithoutToolsTextIsText) {
  FakeBackend backend;
  backend.reply = kCall;
  RunningServer server(&backend, models(kHermes));
  for (const std::string& rest :
       {std::string(R"("tools": [])"), std::string(kTools) + R"(, "tool_choice": "none")"}) {
    const json body = answer_of(server, rest);
    EXPECT_EQ(body["choices"][0]["message"]["content"], kCall);
    EXPECT_EQ(body["choices"][0]["finish_reason"], "stop");
    EXPECT_EQ(backend.wait_for_request(1).grammar, "");
  }
}

TEST(HttpTools, OldFunctionsAnswerTheOldWay) {
  FakeBackend backend;
  backend.reply = kCall;
  RunningServer server(&backend, models(kHermes));
  const std::string rest =
      R"("functions": [{"name": "weather"}], "function_call": {"name": "weather"})";
  const json choice = answer_of(server, rest)["choices"][0];
  EXPECT_EQ(choice["message"]["function_call"]["name"], "weather");
  EXPECT_EQ(choice["finish_reason"], "function_call");
  EXPECT_EQ(stream_of(server, rest).finish_reason, "function_call");
}

TEST(HttpTools, EagerIsTheServersOrTheRequests) {
  FakeBackend backend;
  backend.reply = kCall;
  ServerOptions options;
  options.eager_tools = true;
  RunningServer server(&backend, models(kHermes), options);
  const auto format = [&](std::size_t count, const std::string& rest) {
    answer_of(server, std::string(kTools) + rest);
    return json::parse(backend.wait_for_request(count).grammar)["format"]["type"];
  };
  EXPECT_EQ(format(1, ""), "tags_with_separator");
  EXPECT_EQ(format(2, R"(, "thaw": {"tool_auto": "lazy"})"), "triggered_tags");
  const ClientReply reply = server.post(
      kChatPath,
      R"({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": null,)"
      R"( "tool_calls": [{"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}]},)"
      R"( {"role": "tool", "tool_call_id": "1", "content": "rain"}], )" +
          std::string(kTools) + "}");
  EXPECT_EQ(reply.status, 200) << reply.body;
  EXPECT_EQ(json::parse(backend.wait_for_request(3).grammar)["format"]["type"], "triggered_tags");
}

TEST(HttpTools, StructuredOutputIsPlainContent) {
  FakeBackend backend;
  backend.reply = "{\"a\": 1}";
  RunningServer server(&backend, models(kHermes));
  const json body = answer_of(
      server,
      R"("response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": )"
      R"({"type": "object"}}})");
  EXPECT_EQ(body["choices"][0]["message"]["content"], "{\"a\": 1}");
  EXPECT_EQ(body["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(json::parse(backend.wait_for_request(1).grammar)["format"]["type"], "json_schema");
  const ClientReply text =
      server.post("/v1/completions", R"({"prompt": "x", "guided_choice": ["a", "b"]})");
  EXPECT_EQ(text.status, 200);
  EXPECT_EQ(json::parse(backend.wait_for_request(2).grammar)["format"]["type"], "or");
}

TEST(HttpTools, ThinkingHasBothNames) {
  FakeBackend backend;
  backend.reply = "<think>\nHm.\n</think>\n\nFour.";
  RunningServer server(&backend, models(kThinker));
  const json message = answer_of(server, R"("seed": 1)")["choices"][0]["message"];
  EXPECT_EQ(message["content"], "Four.");
  EXPECT_EQ(message["reasoning"], "Hm.");
  EXPECT_EQ(message["reasoning_content"], "Hm.");
  const Streamed streamed = stream_of(server, R"("seed": 1)");
  EXPECT_EQ(streamed.content, "Four.");
  EXPECT_EQ(streamed.reasoning, "Hm.");
  EXPECT_FALSE(answer_of(server, R"("include_reasoning": false)")["choices"][0]["message"].contains(
      "reasoning"));
}

TEST(HttpTools, UsageHasTheTokensOfTheThinking) {
  FakeBackend backend;
  backend.reply = "<think>\nHm.\n</think>\n\nFour.";
  RunningServer server(&backend, models(kThinker));
  const auto thought = [](const json& usage) {
    return usage["completion_tokens_details"]["reasoning_tokens"].get<std::size_t>();
  };
  // A token is a byte here, and thinking begins with the last one of its marker.
  const std::size_t expected = std::string(">\nHm.\n</think>").size();
  EXPECT_EQ(thought(answer_of(server, "")["usage"]), expected);
  const ClientReply streamed = server.post(
      kChatPath, chat_body(R"("stream": true, "stream_options": {"include_usage": true})"));
  const std::vector<std::string> data = sse_data(streamed.body);
  EXPECT_EQ(thought(json::parse(data.at(data.size() - 2))["usage"]), expected);
  const ClientReply text = server.post(kTextPath, R"({"prompt": "x"})");
  EXPECT_EQ(thought(json::parse(text.body)["usage"]), 0U);
}

TEST(HttpTools, AGrammarThatIsNoneIsTheClientsMistake) {
  FakeBackend backend(/*automatic=*/false);
  RunningServer server(&backend, models(kHermes));
  RawClient client(server.port());
  client.send(post_bytes(kChatPath, chat_body(R"("guided_regex": "(")")));
  const RequestId id = backend.wait_for_request(1).id;
  backend.emit(FailedEvent{id, make_error(Errc::kInvalidArgument, "grammar: no `)`")});
  const auto reply = client.read_reply();
  ASSERT_TRUE(reply);
  EXPECT_EQ(reply->status, 400);
  EXPECT_EQ(json::parse(reply->body)["error"]["type"], "invalid_request_error");
  EXPECT_EQ(json::parse(reply->body)["error"]["param"], "guided_regex");
}

TEST(HttpTools, ASessionKnowsItsToolsAndCalls) {
  FakeBackend backend;
  backend.reply = kCall;
  RunningServer server(&backend);
  const ClientReply made =
      server.post("/v1/sessions", R"({"messages": [{"role": "system", "content": "s"}], )" +
                                      std::string(kTools) + R"(, "prefill": false})");
  ASSERT_EQ(made.status, 200) << made.body;
  const std::string id = json::parse(made.body)["id"];
  // The turn says nothing of tools: they are the session's.
  const json called =
      answer_of(server, R"("session_id": ")" + id + R"(", "tool_choice": "required")");
  const json& call = called["choices"][0]["message"]["tool_calls"].at(0);
  EXPECT_EQ(call["function"]["name"], "weather");
  backend.reply = "Rain.";
  const ClientReply next =
      server.post(kChatPath, R"({"messages": [{"role": "tool", "tool_call_id": ")" +
                                 call["id"].get<std::string>() +
                                 R"(", "content": "rain"}], "session_id": ")" + id + R"("})");
  ASSERT_EQ(next.status, 200) << next.body;
  const json session = json::parse(server.get("/v1/sessions/" + id + "?include=messages").body);
  const json& messages = session["messages"];
  ASSERT_EQ(messages.size(), 5U) << session;
  EXPECT_EQ(messages[2]["tool_calls"][0]["id"], call["id"]);
  EXPECT_EQ(messages[2]["tool_calls"][0]["function"]["arguments"]["city"], "Bonn");
  EXPECT_EQ(messages[4]["content"], "Rain.");
  const ClientReply wrong = server.post(
      kChatPath,
      chat_body(R"("session_id": ")" + id +
                R"(", "tool_choice": {"type": "function", "function": {"name": "nobody"}})"));
  EXPECT_EQ(wrong.status, 400);
}

}  // namespace
}  // namespace thaw::coalescer
