// /v1/responses over HTTP, with a fake model.

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "tests/coalescer/http_client.h"

namespace thaw::coalescer {
namespace {

using nlohmann::json;

constexpr const char* kPath = "/v1/responses";
constexpr const char* kAnna = "Authorization: Bearer anna\r\n";
constexpr const char* kBerta = "Authorization: Bearer berta\r\n";

std::string body_of(const std::string& rest, const std::string& input = "Hi") {
  return R"({"input": ")" + input + "\"" + (rest.empty() ? "" : ", " + rest) + "}";
}

json create(RunningServer& server, const std::string& rest = "", const std::string& input = "Hi") {
  const ClientReply reply = server.post(kPath, body_of(rest, input));
  EXPECT_EQ(reply.status, 200) << reply.body;
  return json::parse(reply.body);
}

std::string id_of(const json& response) {
  return response["id"].get<std::string>();
}

json get(RunningServer& server, const std::string& id, const std::string& below = "") {
  const ClientReply reply = server.get(std::string(kPath) + "/" + id + below);
  EXPECT_EQ(reply.status, 200) << reply.body;
  return json::parse(reply.body);
}

ClientReply erase(RunningServer& server, const std::string& id, const std::string& headers = "") {
  return server.ask("DELETE " + std::string(kPath) + "/" + id +
                    " HTTP/1.1\r\nHost: t\r\nConnection: close\r\n" + headers + "\r\n");
}

/// The events of a stream, whose names are those in the data.
std::vector<json> events_of(const std::string& body) {
  std::vector<json> events;
  std::size_t at = 0;
  while (at < body.size()) {
    const std::size_t end = body.find("\n\n", at);
    const std::size_t data = body.find("\ndata: ", at);
    EXPECT_EQ(body.compare(at, 7, "event: "), 0) << body.substr(at, 200);
    events.push_back(json::parse(body.substr(data + 7, end - data - 7)));
    EXPECT_EQ(events.back()["type"], body.substr(at + 7, data - at - 7));
    at = end + 2;
  }
  return events;
}

std::string text_of(const std::vector<TokenId>& tokens) {
  return ByteCodec().decode(tokens, /*keep_special=*/true);
}

ServerOptions two_tenants() {
  ServerOptions options;
  options.api_keys = {{"anna", "anna"}, {"berta", "berta"}};
  return options;
}

TEST(HttpResponses, AnswersWithAResponse) {
  FakeBackend backend;
  RunningServer server(&backend);
  const ClientReply reply =
      server.post(kPath, body_of(R"("instructions": "Be kind.", "metadata": {"k": "v"})"));
  ASSERT_EQ(reply.status, 200) << reply.body;
  const json response = json::parse(reply.body);
  EXPECT_EQ(response["object"], "response");
  EXPECT_EQ(response["status"], "completed");
  EXPECT_EQ(response["output"][0]["type"], "message");
  EXPECT_EQ(response["output"][0]["content"][0]["text"], "Hello, world.");
  EXPECT_EQ(response["metadata"]["k"], "v");
  EXPECT_EQ(response["usage"]["input_tokens"],
            std::string("system: Be kind.\nuser: Hi\nassistant:").size());
  EXPECT_EQ(response["usage"]["output_tokens"], 14);
  EXPECT_EQ(reply.headers.at("x-request-id"), id_of(response));
  EXPECT_EQ(id_of(response).size(), 37U);
  const json cut = create(server, R"("max_output_tokens": 5)");
  EXPECT_EQ(cut["status"], "incomplete");
  EXPECT_EQ(cut["output"][0]["content"][0]["text"], "Hello");
}

TEST(HttpResponses, CountsWhatAResponseWouldRead) {
  FakeBackend backend;
  ServerOptions options;
  options.max_model_len = 100;
  RunningServer server(&backend, options);
  const auto count = [&](const std::string& body) {
    const ClientReply reply = server.post(std::string(kPath) + "/input_tokens", body);
    EXPECT_EQ(reply.status, 200) << reply.body;
    const json counted = json::parse(reply.body);
    EXPECT_EQ(counted["object"], "response.input_tokens");
    return counted["input_tokens"].get<std::size_t>();
  };
  EXPECT_EQ(count(body_of(R"("instructions": "Be kind.")")),
            std::string("system: Be kind.\nuser: Hi\nassistant:").size());
  EXPECT_EQ(backend.num_plans(), 0U);
  const json first = create(server);
  const std::string next = body_of(R"("previous_response_id": ")" + id_of(first) + "\"");
  const std::size_t counted = count(next);
  EXPECT_EQ(counted, json::parse(server.post(kPath, next).body)["usage"]["input_tokens"]);
  // What does not fit is counted; what would be left of it is, where the oldest messages go.
  const std::string longer = body_of("", std::string(200, 'x'));
  EXPECT_EQ(server.post(kPath, longer).status, 400);
  EXPECT_GT(count(longer), 200U);
  const std::string both = R"({"input": [{"role": "user", "content": ")" + std::string(200, 'x') +
                           R"("}, {"role": "user", "content": "Hi"}], "truncation": "auto"})";
  EXPECT_EQ(count(both), std::string("user: Hi\nassistant:").size());
  for (const auto& [body, status] :
       {std::pair(R"({"previous_response_id": "resp_none"})", 404), {R"({"input": 5})", 400}}) {
    EXPECT_EQ(server.post(std::string(kPath) + "/input_tokens", body).status, status);
  }
  EXPECT_EQ(server.get(std::string(kPath) + "/input_tokens").headers.at("allow"), "POST");
}

TEST(HttpResponses, AStreamEndsWithTheStoredResponse) {
  FakeBackend backend;
  RunningServer server(&backend);
  const ClientReply reply = server.post(kPath, body_of(R"("stream": true)"));
  ASSERT_EQ(reply.status, 200);
  EXPECT_EQ(reply.headers.at("content-type").substr(0, 17), "text/event-stream");
  const auto events = events_of(reply.body);
  EXPECT_EQ(events.front()["type"], "response.created");
  EXPECT_EQ(events.back()["type"], "response.completed");
  std::string text;
  for (std::size_t i = 0; i < events.size(); ++i) {
    EXPECT_EQ(events[i]["sequence_number"], i);
    if (events[i]["type"] == "response.output_text.delta")
      text += events[i]["delta"].get<std::string>();
  }
  EXPECT_EQ(text, "Hello, world.");
  const json& response = events.back()["response"];
  EXPECT_EQ(get(server, id_of(response)), response);
}

TEST(HttpResponses, AreReadAndDeleted) {
  FakeBackend backend;
  RunningServer server(&backend);
  const json response = create(server);
  const std::string id = id_of(response);
  EXPECT_EQ(get(server, id), response);
  EXPECT_EQ(json::parse(erase(server, id).body),
            json({{"id", id}, {"object", "response"}, {"deleted", true}}));
  for (const ClientReply& gone :
       {server.get(std::string(kPath) + "/" + id), erase(server, id),
        server.get(std::string(kPath) + "/" + id + "/input_items"),
        server.post(kPath, body_of(R"("previous_response_id": ")" + id + "\""))}) {
    EXPECT_EQ(gone.status, 404) << gone.body;
  }
  const std::string unstored = id_of(create(server, R"("store": false)"));
  EXPECT_EQ(server.get(std::string(kPath) + "/" + unstored).status, 404);
}

TEST(HttpResponses, AnotherTenantsAreNotThere) {
  FakeBackend backend;
  RunningServer server(&backend, two_tenants());
  const ClientReply made = server.post(kPath, body_of(""), kAnna);
  ASSERT_EQ(made.status, 200) << made.body;
  const json response = json::parse(made.body);
  const std::string path = std::string(kPath) + "/" + id_of(response);
  const std::string item = response["output"][0]["id"];
  EXPECT_EQ(server.get(path, kAnna).status, 200);
  EXPECT_EQ(server.get(path, kBerta).status, 404);
  EXPECT_EQ(server.get(path + "/input_items", kBerta).status, 404);
  EXPECT_EQ(server.post(path + "/cancel", "", kBerta).status, 404);
  EXPECT_EQ(erase(server, id_of(response), kBerta).status, 404);
  const std::string previous = body_of(R"("previous_response_id": ")" + id_of(response) + "\"");
  EXPECT_EQ(server.post(kPath, previous, kBerta).status, 404);
  const std::string trunk =
      R"({"trunk": {"response_id": ")" + id_of(response) + R"("}, "forks": [{}]})";
  EXPECT_EQ(server.post("/v1/forks", trunk, kBerta).status, 404);
  const std::string reference =
      R"({"input": [{"type": "item_reference", "id": ")" + item + R"("}]})";
  EXPECT_EQ(server.post(kPath, reference, kBerta).status, 404);
  EXPECT_EQ(server.post(kPath, reference, kAnna).status, 200);
}

TEST(HttpResponses, InputItemsComeInPages) {
  FakeBackend backend;
  RunningServer server(&backend);
  const ClientReply made = server.post(
      kPath, R"({"input": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
                {"id": "own", "role": "user", "content": [{"type": "input_text", "text": "c"}]}]})");
  ASSERT_EQ(made.status, 200) << made.body;
  const std::string id = id_of(json::parse(made.body));
  const json all = get(server, id, "/input_items");
  EXPECT_EQ(all["object"], "list");
  ASSERT_EQ(all["data"].size(), 3U);
  EXPECT_EQ(all["data"][0]["id"], "own");
  EXPECT_EQ(all["data"][2]["content"][0], json({{"type", "input_text"}, {"text", "a"}}));
  EXPECT_EQ(all["data"][1]["content"][0]["type"], "output_text");
  EXPECT_EQ(all["has_more"], false);
  EXPECT_EQ(all["first_id"], "own");
  EXPECT_EQ(all["last_id"], all["data"][2]["id"]);
  const json first = get(server, id, "/input_items?order=asc&limit=2");
  EXPECT_EQ(first["data"][0], all["data"][2]);
  EXPECT_EQ(first["has_more"], true);
  const json second = get(
      server, id, "/input_items?order=asc&limit=2&after=" + first["last_id"].get<std::string>());
  ASSERT_EQ(second["data"].size(), 1U);
  EXPECT_EQ(second["data"][0]["id"], "own");
  EXPECT_EQ(server.get(std::string(kPath) + "/" + id + "/input_items?after=none").status, 400);
}

TEST(HttpResponses, GoesOnWithAPreviousOne) {
  FakeBackend backend;
  RunningServer server(&backend);
  const std::string first = id_of(create(server, R"("instructions": "Be kind.")"));
  const json second = create(
      server, R"("instructions": "Be kind.", "previous_response_id": ")" + first + "\"", "More");
  EXPECT_EQ(second["previous_response_id"], first);
  const std::string turn = "system: Be kind.\nuser: Hi\nassistant:Hello, world.\n";
  EXPECT_EQ(text_of(backend.wait_for_request(2).prompt), turn + "user: More\nassistant:");
  create(server, R"("previous_response_id": ")" + id_of(second) + "\"", "Yet more");
  EXPECT_EQ(text_of(backend.wait_for_request(3).prompt),
            "user: Hi\nassistant:Hello, world.\nuser: More\nassistant:Hello, world.\n"
            "user: Yet more\nassistant:");
}

TEST(HttpResponses, ToolsGoRound) {
  auto codec = std::make_shared<ByteCodec>();
  codec->chat_form = ChatForm{ToolForm::kHermes, true, "", ""};
  ServedModel model;
  model.names = {"fake-model"};
  model.max_model_len = 4096;
  model.codec = codec;
  auto table = std::make_shared<ServedModels>();
  ASSERT_TRUE(table->add(std::move(model)));
  FakeBackend backend;
  backend.reply =
      "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Bonn\"}}\n</tool_call>";
  RunningServer server(&backend, table);
  const std::string tools =
      R"("tools": [{"type": "function", "name": "weather", "parameters": {"type": "object"}}])";
  const json first = create(server, tools + R"(, "tool_choice": "required")");
  ASSERT_EQ(first["output"].size(), 1U);
  const json& call = first["output"][0];
  EXPECT_EQ(call["type"], "function_call");
  EXPECT_EQ(call["name"], "weather");
  EXPECT_EQ(json::parse(call["arguments"].get<std::string>())["city"], "Bonn");
  backend.reply = "Warm.";
  const json output = {{"previous_response_id", first["id"]},
                       {"input",
                        {{{"type", "function_call_output"},
                          {"call_id", call["call_id"]},
                          {"output", "20 degrees"}}}}};
  const ClientReply second = server.post(kPath, output.dump());
  ASSERT_EQ(second.status, 200) << second.body;
  EXPECT_EQ(json::parse(second.body)["output"][0]["content"][0]["text"], "Warm.");
  const std::string prompt = text_of(backend.wait_for_request(2).prompt);
  EXPECT_NE(prompt.find("tool: 20 degrees\nassistant:"), std::string::npos) << prompt;
}

TEST(HttpResponses, RunInTheBackground) {
  FakeBackend backend(/*automatic=*/false);
  RunningServer server(&backend);
  const json queued = create(server, R"("background": true)");
  EXPECT_EQ(queued["status"], "queued");
  EXPECT_EQ(queued["background"], true);
  const std::string id = id_of(queued);
  const RequestId request = backend.wait_for_request(1).id;
  EXPECT_EQ(get(server, id)["status"], "queued");
  const ClientReply early = server.post(kPath, body_of(R"("previous_response_id": ")" + id + "\""));
  EXPECT_EQ(early.status, 409) << early.body;
  EXPECT_EQ(get(server, id, "/input_items")["data"].size(), 1U);

  // A reader that comes while it runs sees all events, as they come.
  RawClient reader(server.port());
  ASSERT_TRUE(reader.send(get_bytes(std::string(kPath) + "/" + id + "?stream=true")));
  backend.emit(AdmittedEvent{request, 0});
  backend.emit_text(request, "Hel");
  ASSERT_TRUE(reader.read_until("\"delta\":\"l\""));
  EXPECT_EQ(get(server, id)["status"], "in_progress");
  backend.emit_text(request, "lo");
  backend.emit_end(request);
  ASSERT_TRUE(reader.read_until("response.completed"));
  const json response = get(server, id);
  EXPECT_EQ(response["status"], "completed");
  EXPECT_EQ(response["output"][0]["content"][0]["text"], "Hello");

  // And one that comes afterwards, from wherever it was.
  const auto events = events_of(server.get(std::string(kPath) + "/" + id + "?stream=true").body);
  EXPECT_EQ(events[1]["type"], "response.queued");
  EXPECT_EQ(events.back()["response"], response);
  const auto rest =
      events_of(server.get(std::string(kPath) + "/" + id + "?stream=true&starting_after=4").body);
  ASSERT_EQ(rest.size(), events.size() - 5);
  EXPECT_EQ(rest.front()["sequence_number"], 5);
  EXPECT_TRUE(
      events_of(server.get(std::string(kPath) + "/" + id + "?stream=true&starting_after=999").body)
          .empty());
  // It is over: to cancel it changes nothing.
  EXPECT_EQ(json::parse(server.post(std::string(kPath) + "/" + id + "/cancel", "").body), response);
}

TEST(HttpResponses, ABackgroundStreamOutlivesItsClient) {
  FakeBackend backend(/*automatic=*/false);
  RunningServer server(&backend);
  std::string id;
  {
    RawClient client(server.port());
    ASSERT_TRUE(client.send(post_bytes(kPath, body_of(R"("background": true, "stream": true)"))));
    const RequestId request = backend.wait_for_request(1).id;
    backend.emit(AdmittedEvent{request, 0});
    backend.emit_text(request, "x");
    const auto head = client.read_until("output_text.delta");
    ASSERT_TRUE(head);
    id = head->substr(head->find("resp_"), 37);
  }
  const RequestId request = backend.wait_for_request(1).id;
  backend.emit_text(request, "yz");
  backend.emit_end(request);
  const auto events = events_of(server.get(std::string(kPath) + "/" + id + "?stream=true").body);
  ASSERT_FALSE(events.empty());
  EXPECT_EQ(events.back()["type"], "response.completed");
  EXPECT_EQ(events.back()["response"]["output"][0]["content"][0]["text"], "xyz");
}

TEST(HttpResponses, TheHeadOfAStreamHasNoBody) {
  FakeBackend backend(/*automatic=*/false);
  RunningServer server(&backend);
  const std::string id = id_of(create(server, R"("background": true)"));
  const std::string path = std::string(kPath) + "/" + id;
  const auto is_head_alone = [&] {
    RawClient client(server.port());
    EXPECT_TRUE(client.send("HEAD " + path + "?stream=true HTTP/1.1\r\nHost: t\r\n\r\n"));
    const auto head = client.read_until("\r\n\r\n");
    if (!head || head->find("text/event-stream") == std::string::npos) return false;
    // What comes next on the connection is the next answer.
    EXPECT_TRUE(client.send(get_bytes(path)));
    const auto line = client.read_until("\r\n");
    return line && line->starts_with("HTTP/1.1 200 ");
  };
  const RequestId request = backend.wait_for_request(1).id;
  backend.emit(AdmittedEvent{request, 0});
  backend.emit_text(request, "x");
  EXPECT_TRUE(is_head_alone());
  backend.emit_end(request);
  ASSERT_FALSE(server.get(path + "?stream=true").body.empty());  // it is over
  EXPECT_TRUE(is_head_alone());
}

TEST(HttpResponses, AStreamIsAskedForFromAnEventOn) {
  FakeBackend backend(/*automatic=*/false);
  RunningServer server(&backend);
  const std::string path =
      std::string(kPath) + "/" + id_of(create(server, R"("background": true)"));
  for (const char* wrong : {"9223372036854775807", "9223372036854775808", "-1"}) {
    const ClientReply reply = server.get(path + "?stream=true&starting_after=" + wrong);
    EXPECT_EQ(reply.status, 400) << wrong;
    const json error = json::parse(reply.body)["error"];
    EXPECT_EQ(error["param"], "starting_after");
    EXPECT_NE(error["message"].get<std::string>().find(wrong), std::string::npos);
  }
}

TEST(HttpResponses, ABackgroundResponseIsCancelled) {
  FakeBackend backend(/*automatic=*/false);
  RunningServer server(&backend);
  const std::string id = id_of(create(server, R"("background": true)"));
  const RequestId request = backend.wait_for_request(1).id;
  RawClient reader(server.port());
  ASSERT_TRUE(reader.send(get_bytes(std::string(kPath) + "/" + id + "?stream=true")));
  backend.emit(AdmittedEvent{request, 0});
  backend.emit_text(request, "Hel");
  ASSERT_TRUE(reader.read_until("\"delta\":\"l\""));
  const ClientReply reply = server.post(std::string(kPath) + "/" + id + "/cancel", "");
  ASSERT_EQ(reply.status, 200) << reply.body;
  const json cancelled = json::parse(reply.body);
  EXPECT_EQ(cancelled["status"], "cancelled");
  EXPECT_EQ(cancelled["output"][0]["content"][0]["text"], "Hel");
  EXPECT_EQ(cancelled["output"][0]["status"], "incomplete");
  EXPECT_TRUE(backend.wait_for_cancel(request));
  EXPECT_EQ(get(server, id), cancelled);
  ASSERT_TRUE(reader.read_until("0\r\n\r\n")) << "its stream ends";
  EXPECT_EQ(server.post(kPath, body_of(R"("previous_response_id": ")" + id + "\"")).status, 400);

  const std::string other = id_of(create(server, R"("background": true)"));
  const RequestId second = backend.wait_for_request(2).id;
  EXPECT_EQ(erase(server, other).status, 200);
  EXPECT_TRUE(backend.wait_for_cancel(second));
  EXPECT_EQ(server.get(std::string(kPath) + "/" + other).status, 404);
}

TEST(HttpResponses, ABackgroundResponseThatFailsSaysSo) {
  FakeBackend backend(/*automatic=*/false);
  RunningServer server(&backend);
  const std::string id = id_of(create(server, R"("background": true)"));
  const RequestId request = backend.wait_for_request(1).id;
  RawClient reader(server.port());
  ASSERT_TRUE(reader.send(get_bytes(std::string(kPath) + "/" + id + "?stream=true")));
  backend.emit(FailedEvent{request, make_error(Errc::kInternal, "broken")});
  ASSERT_TRUE(reader.read_until("response.failed"));
  const json failed = get(server, id);
  EXPECT_EQ(failed["status"], "failed");
  EXPECT_EQ(failed["error"]["code"], "server_error");
  EXPECT_EQ(failed["error"]["message"], "broken");
  const auto events = events_of(server.get(std::string(kPath) + "/" + id + "?stream=true").body);
  EXPECT_EQ(events.front()["type"], "response.created");
}

TEST(HttpResponses, AServerThatStopsLetsBackgroundResponsesGo) {
  FakeBackend backend(/*automatic=*/false);
  RunningServer server(&backend);
  create(server, R"("background": true)");
  server.stop_and_join(std::chrono::milliseconds(0));
}

TEST(HttpResponses, AServerThatStopsEndsTheStreamsOfBackgroundResponses) {
  FakeBackend backend(/*automatic=*/false);
  RunningServer server(&backend);
  const std::string id = id_of(create(server, R"("background": true)"));
  RawClient reader(server.port());
  ASSERT_TRUE(reader.send(get_bytes(std::string(kPath) + "/" + id + "?stream=true")));
  ASSERT_TRUE(reader.read_until("\r\n\r\n"));
  server.stop_and_join(std::chrono::milliseconds(0));
  const auto rest = reader.read_until("\r\n0\r\n\r\n");
  ASSERT_TRUE(rest) << "the body is whole";
  EXPECT_NE(rest->find("response.failed"), std::string::npos);
}

TEST(HttpResponses, AReaderOfABackgroundResponseMayGo) {
  FakeBackend backend(/*automatic=*/false);
  RunningServer server(&backend);
  const std::string path =
      std::string(kPath) + "/" + id_of(create(server, R"("background": true)"));
  const auto num_connections = [&] { return metric(server, "thaw_http_connections"); };
  {
    RawClient reader(server.port());
    ASSERT_TRUE(reader.send(get_bytes(path + "?stream=true")));
    ASSERT_TRUE(reader.read_until("\r\n\r\n"));
    EXPECT_EQ(num_connections(), 2);
  }
  for (int i = 0; i < 500 && num_connections() > 1; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_EQ(num_connections(), 1) << "nothing was to be sent, and yet it was seen";
  EXPECT_EQ(json::parse(server.get(path).body)["status"], "queued");
}

TEST(HttpResponses, OnlyBackgroundOnesAreCancelledOrReplayed) {
  FakeBackend backend;
  RunningServer server(&backend);
  const std::string path = std::string(kPath) + "/" + id_of(create(server));
  EXPECT_EQ(server.post(path + "/cancel", "").status, 400);
  EXPECT_EQ(server.get(path + "?stream=true").status, 400);
}

TEST(HttpResponses, AFailureBeforeTheStreamHasItsStatus) {
  FakeBackend backend(/*automatic=*/false);
  RunningServer server(&backend);
  RawClient client(server.port());
  ASSERT_TRUE(client.send(post_bytes(kPath, body_of(R"("stream": true)"))));
  const RequestId request = backend.wait_for_request(1).id;
  backend.emit(FailedEvent{request, make_error(Errc::kUnavailable, "no worker")});
  const auto reply = client.read_reply();
  ASSERT_TRUE(reply);
  EXPECT_EQ(reply->status, 503);
}

TEST(HttpResponses, AreTheTrunkOfForks) {
  FakeBackend backend;
  RunningServer server(&backend);
  const std::string id = id_of(create(server));
  // More than the server remembers of calls that ended.
  for (int i = 0; i < 70; ++i)
    create(server, R"("store": false)");
  const auto fork = [&](const std::string& trunk) {
    const std::string rest =
        R"("forks": [{"messages": [{"role": "user", "content": "A"}]},
                     {"messages": [{"role": "user", "content": "B"}]}]})";
    return server.post("/v1/forks",
                       R"({"trunk": {"response_id": ")" + id + "\"" + trunk + "}, " + rest);
  };
  const ClientReply reply = fork("");
  ASSERT_EQ(reply.status, 200) << reply.body;
  EXPECT_EQ(json::parse(reply.body)["data"].size(), 2U);
  EXPECT_EQ(text_of(backend.wait_for_request(73).prompt),
            "user: Hi\nassistant:Hello, world.\nuser: B\nassistant:");
  ASSERT_EQ(fork(R"(, "token": 5)").status, 200);
  EXPECT_EQ(text_of(backend.wait_for_request(75).prompt),
            "user: Hi\nassistant:Hello\nuser: B\nassistant:");
  EXPECT_EQ(fork(R"(, "token": 99)").status, 409);
  EXPECT_EQ(fork(R"(, "choice": 1)").status, 400);
}

TEST(HttpResponses, TheStoreHasLimits) {
  FakeBackend backend;
  ServerOptions options;
  options.response_limits.max_responses = 2;
  RunningServer server(&backend, options);
  std::vector<std::string> ids;
  for (int i = 0; i < 3; ++i)
    ids.push_back(id_of(create(server)));
  EXPECT_EQ(server.get(std::string(kPath) + "/" + ids[0]).status, 404);
  EXPECT_EQ(server.get(std::string(kPath) + "/" + ids[2]).status, 200);
  const std::string metrics = server.get("/metrics").body;
  EXPECT_NE(metrics.find("\nthaw_responses 2\n"), std::string::npos);
  EXPECT_NE(metrics.find("\nthaw_responses_dropped_total 1\n"), std::string::npos);
}

TEST(HttpResponses, WrongRequestsAreRefused) {
  FakeBackend backend;
  RunningServer server(&backend);
  const std::pair<std::string, std::string> cases[] = {
      {"{}", "input"},
      {body_of(R"("tools": [{"type": "web_search"}])"), "tools[0].type"},
      {body_of(R"("max_output_tokens": 100000)"), "input"},
      {body_of(R"("background": true, "thaw": {"explain": true})"), "thaw.explain"},
  };
  for (const auto& [body, param] : cases) {
    const ClientReply reply = server.post(kPath, body);
    EXPECT_EQ(reply.status, 400) << reply.body;
    EXPECT_EQ(json::parse(reply.body)["error"]["param"], param) << reply.body;
  }
  EXPECT_EQ(server.get(kPath).status, 405);
  EXPECT_EQ(server.get(std::string(kPath) + "/resp_1/other").status, 404);
  EXPECT_EQ(server.post(std::string(kPath) + "/resp_1", "{}").status, 405);
  const json error = json::parse(server.get(std::string(kPath) + "/resp_1").body)["error"];
  EXPECT_EQ(error["code"], "response_not_found");
  EXPECT_EQ(error["param"], "response_id");
}

}  // namespace
}  // namespace thaw::coalescer
