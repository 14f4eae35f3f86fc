// POST /v1/forks over sockets, with a backend that tests play.

#include <map>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "tests/coalescer/http_client.h"

namespace thaw::coalescer {
namespace {

using nlohmann::json;

constexpr const char* kForks = "/v1/forks";

json user(const std::string& text) {
  return {{"role", "user"}, {"content", text}};
}

TEST(HttpForks, MessagesAndBranchesAsCallsByThemselves) {
  FakeBackend backend;
  RunningServer server(&backend);
  const json body = {{"trunk", {{"messages", {user("trunk")}}}},
                     {"max_tokens", 5},
                     {"forks",
                      {{{"messages", {user("a")}}, {"label", "first"}, {"seed", 3}},
                       {{"messages", {user("b")}}, {"max_tokens", 2}, {"temperature", 0}},
                       json::object()}}};
  const ClientReply reply = server.post(kForks, body.dump());
  ASSERT_EQ(reply.status, 200) << reply.body;
  const json answer = json::parse(reply.body);
  EXPECT_EQ(answer["object"], "forks");
  ASSERT_EQ(answer["data"].size(), 3U);
  EXPECT_EQ(answer["data"][0]["label"], "first");
  EXPECT_EQ(answer["data"][0]["choices"][0]["message"]["content"], "Hello");
  EXPECT_EQ(answer["data"][1]["branch"], 1);
  EXPECT_EQ(answer["data"][1]["object"], "chat.completion");
  EXPECT_EQ(answer["data"][1]["choices"][0]["message"]["content"], "He");
  std::uint64_t prompt_tokens = 0;
  for (const json& branch : answer["data"])
    prompt_tokens += branch["usage"]["prompt_tokens"].get<std::uint64_t>();
  EXPECT_EQ(answer["usage"]["prompt_tokens"], prompt_tokens);
  // One plan for all of them.
  ASSERT_EQ(backend.num_plans(), 1U);
  const auto requests = backend.plans().front().requests;
  ASSERT_EQ(requests.size(), 3U);
  EXPECT_EQ(text_of(requests[0].request), "user: trunk\nuser: a\nassistant:");
  EXPECT_EQ(text_of(requests[2].request), "user: trunk\nassistant:");
  EXPECT_EQ(requests[0].request.sampling.seed, 3U);
  EXPECT_EQ(requests[1].request.sampling.temperature, 0.0F);
  // A session can be made of each.
  const json session = json::parse(
      server.post("/v1/sessions", json{{"response_id", answer["data"][0]["id"]}}.dump()).body);
  EXPECT_EQ(session["num_messages"], 3) << session;
}

TEST(HttpForks, PromptsOfTextAndOfTokens) {
  FakeBackend backend;
  RunningServer server(&backend);
  const json text = {{"trunk", {{"prompt", "ab"}}},
                     {"forks", {{{"prompt", "c"}}, {{"prompt", "d"}, {"max_tokens", 1}}}}};
  const json answer = json::parse(server.post(kForks, text.dump()).body);
  ASSERT_EQ(answer["data"].size(), 2U) << answer;
  EXPECT_EQ(answer["data"][1]["object"], "text_completion");
  EXPECT_EQ(answer["data"][1]["choices"][0]["text"], "H");
  EXPECT_EQ(text_of(backend.plans().back().requests[1].request), "<bos>abd");
  const json ids = {{"trunk", {{"prompt", {1, 2}}}}, {"forks", {{{"prompt", {3}}}}}};
  ASSERT_EQ(server.post(kForks, ids.dump()).status, 200);
  EXPECT_EQ(backend.plans().back().requests[0].request.prompt, (std::vector<TokenId>{1, 2, 3}));
}

TEST(HttpForks, OneStreamForAll) {
  FakeBackend backend;
  RunningServer server(&backend);
  const json body = {{"trunk", {{"messages", {user("x")}}}},
                     {"stream", true},
                     {"stream_options", {{"include_usage", true}}},
                     {"forks", {{{"max_tokens", 4}}, {{"max_tokens", 2}, {"n", 2}}}}};
  const ClientReply reply = server.post(kForks, body.dump());
  ASSERT_EQ(reply.status, 200) << reply.body;
  std::map<std::pair<int, int>, std::string> texts;
  auto data = sse_data(reply.body);
  ASSERT_EQ(data.back(), "[DONE]");
  data.pop_back();
  const json last = json::parse(data.back());
  EXPECT_EQ(last["object"], "forks.usage");
  EXPECT_EQ(last["usage"]["completion_tokens"], 4 + 2 * 2);
  data.pop_back();
  int usages = 0;
  for (const std::string& frame : data) {
    const json chunk = json::parse(frame);
    for (const json& choice : chunk["choices"])
      texts[{chunk["branch"], choice["index"]}] += choice["delta"].value("content", "");
    if (chunk["choices"].empty()) ++usages;
  }
  EXPECT_EQ(usages, 2);
  const std::map<std::pair<int, int>, std::string> wanted = {
      {{0, 0}, "Hell"}, {{1, 0}, "He"}, {{1, 1}, "He"}};
  EXPECT_EQ(texts, wanted);
}

TEST(HttpForks, FromASession) {
  FakeBackend backend;
  RunningServer server(&backend);
  const json session =
      json::parse(server.post("/v1/sessions", json{{"messages", {user("kept")}}}.dump()).body);
  const json body = {{"trunk", {{"session_id", session["id"]}}},
                     {"forks", {{{"messages", {user("a")}}}, {{"messages", {user("b")}}}}}};
  ASSERT_EQ(server.post(kForks, body.dump()).status, 200);
  const auto requests = backend.plans().back().requests;
  ASSERT_EQ(requests.size(), 2U);
  EXPECT_EQ(text_of(requests[1].request), "user: kept\nuser: b\nassistant:");
  // The session is as it was.
  const json after =
      json::parse(server.get("/v1/sessions/" + session["id"].get<std::string>()).body);
  EXPECT_EQ(after["num_messages"], session["num_messages"]);
  EXPECT_EQ(after["tokens"], session["tokens"]);
}

TEST(HttpForks, FromARunningStreamAtAToken) {
  FakeBackend backend(/*automatic=*/false);
  RunningServer server(&backend);
  RawClient client(server.port());
  client.send(post_bytes(kChatPath, chat_body(R"("stream": true)")));
  const GenerateRequest request = backend.wait_for_request(1);
  backend.emit(AdmittedEvent{request.id, 0});
  backend.emit_text(request.id, "abcdef");
  const auto head = client.read_until("\"content\":\"f\"");
  ASSERT_TRUE(head);
  // The head of the answer holds the id as well, without quotes.
  const std::size_t at = head->find("\"chatcmpl-") + 1;
  const std::string id = head->substr(at, head->find('"', at) - at);

  backend.set_automatic(true);
  json body = {{"trunk", {{"response_id", id}, {"token", 3}}},
               {"forks", {json::object(), {{"messages", {user("new")}}}}}};
  const ClientReply reply = server.post(kForks, body.dump());
  ASSERT_EQ(reply.status, 200) << reply.body;
  const auto requests = backend.plans().back().requests;
  ASSERT_EQ(requests.size(), 2U);
  EXPECT_EQ(text_of(requests[0].request), "user: Hi\nassistant:abc");
  EXPECT_EQ(text_of(requests[1].request), "user: Hi\nassistant:abc\nuser: new\nassistant:");
  // It has not come so far yet.
  body["trunk"]["token"] = 7;
  const ClientReply early = server.post(kForks, body.dump());
  EXPECT_EQ(early.status, 409);
  EXPECT_EQ(early.headers.count("retry-after-ms"), 1U);
  EXPECT_EQ(json::parse(early.body)["error"]["code"], "token_not_reached");
  backend.emit_end(request.id);
}

TEST(HttpForks, AHangUpEndsAllBranches) {
  FakeBackend backend(/*automatic=*/false);
  RunningServer server(&backend);
  {
    RawClient client(server.port());
    client.send(post_bytes(
        kForks,
        json{{"trunk", {{"prompt", "a"}}}, {"forks", {json::object(), json::object()}}}.dump()));
    backend.wait_for_request(2);
  }
  EXPECT_TRUE(backend.wait_for_cancel(1));
  EXPECT_TRUE(backend.wait_for_cancel(2));
}

TEST(HttpForks, ABranchThatFailsSaysSo) {
  FakeBackend backend(/*automatic=*/false);
  RunningServer server(&backend);
  ClientReply reply;
  std::thread asking([&] {
    reply = server.post(
        kForks,
        json{{"trunk", {{"prompt", "a"}}}, {"forks", {json::object(), json::object()}}}.dump());
  });
  backend.wait_for_request(2);
  backend.emit(AdmittedEvent{1, 0});
  backend.emit_text(1, "ok");
  backend.emit_end(1);
  backend.emit(FailedEvent{2, make_error(Errc::kInternal, "broken")});
  asking.join();
  ASSERT_EQ(reply.status, 200);
  const json data = json::parse(reply.body)["data"];
  EXPECT_EQ(data[0]["choices"][0]["text"], "ok");
  EXPECT_EQ(data[1]["branch"], 1);
  EXPECT_EQ(data[1]["error"]["message"], "broken");
}

TEST(HttpForks, ErrorsNameTheirPlace) {
  FakeBackend backend;
  ServerOptions options;
  options.max_num_seqs = 4;
  RunningServer server(&backend, options);
  const json trunk = {{"messages", {user("x")}}};
  const json one = json::array({json::object()});
  const std::pair<const char*, json> cases[] = {
      {"trunk", {{"forks", one}}},
      {"trunk", {{"trunk", json::object()}, {"forks", one}}},
      {"trunk", {{"trunk", {{"prompt", "a"}, {"session_id", "b"}}}, {"forks", one}}},
      {"trunk.prompt", {{"trunk", {{"prompt", json::array()}}}, {"forks", one}}},
      {"trunk.token", {{"trunk", {{"session_id", "b"}, {"token", 1}}}, {"forks", one}}},
      {"trunk.session_id", {{"trunk", {{"session_id", "b"}}}, {"forks", one}}},
      {"trunk.response_id", {{"trunk", {{"response_id", "b"}}}, {"forks", one}}},
      {"forks", {{"trunk", trunk}}},
      {"forks", {{"trunk", trunk}, {"forks", json::array()}}},
      {"forks", {{"trunk", trunk}, {"forks", {{{"n", 3}}, {{"n", 2}}}}}},
      {"forks[0]", {{"trunk", trunk}, {"forks", {1}}}},
      {"forks[1].temperature",
       {{"trunk", trunk}, {"forks", {json::object(), {{"temperature", 9}}}}}},
      {"forks[0].stream", {{"trunk", trunk}, {"forks", {{{"stream", true}}}}}},
      {"forks[0].messages[1].role",
       {{"trunk", trunk}, {"forks", {{{"messages", {{{"content", "x"}}}}}}}}},
      {"forks[0].prompt", {{"trunk", {{"prompt", "a"}}}, {"forks", {{{"prompt", {1}}}}}}},
      {"forks[0].prompt", {{"trunk", {{"prompt", "a"}}}, {"forks", {{{"max_tokens", 5000}}}}}},
      {"messages", {{"trunk", trunk}, {"messages", json::array()}, {"forks", one}}}};
  for (const auto& [param, body] : cases) {
    const ClientReply reply = server.post(kForks, body.dump());
    EXPECT_TRUE(reply.status == 400 || reply.status == 404) << body << reply.body;
    EXPECT_EQ(json::parse(reply.body)["error"]["param"], param) << body << reply.body;
  }
  EXPECT_EQ(
      server.post(kForks, json{{"model", "none"}, {"trunk", trunk}, {"forks", one}}.dump()).status,
      404);
  EXPECT_EQ(server.get(kForks).status, 405);
  EXPECT_EQ(backend.num_plans(), 0U);
}

}  // namespace
}  // namespace thaw::coalescer
