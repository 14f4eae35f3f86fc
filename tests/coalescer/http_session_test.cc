// /v1/sessions and the turns of sessions, over sockets and with a backend that tests play.

#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "tests/coalescer/http_client.h"

namespace thaw::coalescer {
namespace {

using nlohmann::json;

json created(RunningServer& server, const std::string& body = kSessionStart,
             const std::string& headers = "") {
  const ClientReply reply = server.post(kSessionsPath, body, headers);
  if (reply.status != 200) throw std::runtime_error(reply.body);
  return json::parse(reply.body);
}

std::string path_of(const json& session, const std::string& verb = "") {
  return std::string(kSessionsPath) + "/" + session["id"].get<std::string>() +
         (verb.empty() ? "" : "/" + verb);
}

json shown(RunningServer& server, const json& session, const std::string& query = "") {
  return json::parse(server.get(path_of(session) + query).body);
}

std::string turn_body(const json& session, const std::string& text, const std::string& more = "") {
  json body = {{"session_id", session["id"]}};
  if (!text.empty()) body["messages"] = {{{"role", "user"}, {"content", text}}};
  body.update(json::parse(more.empty() ? "{}" : more));
  return body.dump();
}

json turn(RunningServer& server, const json& session, const std::string& text,
          const std::string& more = "") {
  const ClientReply reply = server.post(kChatPath, turn_body(session, text, more));
  if (reply.status != 200) throw std::runtime_error(reply.body);
  return json::parse(reply.body);
}

std::string text_of_reply(const json& reply) {
  return reply["choices"][0]["message"]["content"];
}

std::string ask_method(const std::string& method, const std::string& path) {
  return method + " " + path + " HTTP/1.1\r\nHost: test\r\n\r\n";
}

TEST(HttpSession, IsPrefilledWhenItIsMade) {
  FakeBackend backend;
  RunningServer server(&backend);
  const json session = created(server);
  EXPECT_EQ(session["id"].get<std::string>().size(), 32U);
  EXPECT_EQ(session["object"], "session");
  EXPECT_EQ(session["tokens"], 64);
  EXPECT_EQ(session["num_messages"], 1);
  EXPECT_EQ(session["usage"]["prompt_tokens"], 64);
  EXPECT_EQ(session["usage"]["prompt_tokens_details"]["cached_tokens"], 32);
  EXPECT_TRUE(session["parent"].is_null());
  const GenerateRequest request = backend.wait_for_request(1);
  EXPECT_EQ(request.sampling.max_tokens, 1U);
  EXPECT_EQ(request.prompt.size(), 64U);
  EXPECT_EQ(request.session, session["id"].get<std::string>());
  const json cold = created(server, R"({"messages": [{"role": "user", "content": "x"}],
                                        "prefill": false, "label": "cold", "ttl_seconds": 5})");
  EXPECT_EQ(backend.num_plans(), 1U);
  EXPECT_FALSE(cold.contains("usage"));
  EXPECT_EQ(cold["label"], "cold");
  EXPECT_EQ(cold["ttl_seconds"], 5);
}

TEST(HttpSession, ATurnIsTheSameMessagesWithoutASession) {
  FakeBackend backend;
  RunningServer server(&backend);
  const json session = created(server, R"({"messages": [{"role": "system", "content": "S"}]})");
  for (const bool stream : {false, true}) {
    const std::string more = stream ? R"({"stream": true, "seed": 7})" : R"({"seed": 7})";
    const ClientReply reply = server.post(kChatPath, turn_body(session, "Hi", more));
    ASSERT_EQ(reply.status, 200) << reply.body;
  }
  const GenerateRequest ours = backend.wait_for_request(3);
  server.post(kChatPath, R"({"messages": [{"role": "system", "content": "S"},
      {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello, world."},
      {"role": "user", "content": "Hi"}], "seed": 7})");
  const GenerateRequest plain = backend.wait_for_request(4);
  EXPECT_EQ(ours.prompt, plain.prompt);
  EXPECT_EQ(ours.sampling.max_tokens, plain.sampling.max_tokens);
  EXPECT_EQ(ours.sampling.seed, plain.sampling.seed);
  EXPECT_EQ(ours.tenant, plain.tenant);
  EXPECT_EQ(ours.cache_salt, plain.cache_salt);
  const json now = shown(server, session, "?include=messages,token_ids");
  EXPECT_EQ(now["turns"], 2);
  ASSERT_EQ(now["messages"].size(), 5U);
  EXPECT_EQ(now["messages"][4]["content"], "Hello, world.");
  std::vector<TokenId> line = ours.prompt;
  for (const TokenId token : byte_tokens("Hello, world."))
    line.push_back(token);
  EXPECT_EQ(now["token_ids"], json(line));
}

TEST(HttpSession, UsageSaysWhichAndHowMuch) {
  FakeBackend backend;
  RunningServer server(&backend);
  const json session = created(server);
  json usage = turn(server, session, "")["usage"]["session"];
  EXPECT_EQ(usage["id"], session["id"]);
  EXPECT_EQ(usage["mode"], "render");
  EXPECT_EQ(usage["common_tokens"], 64);
  // The fake has half of each prompt: 37 of 74.
  EXPECT_EQ(usage["recomputed_tokens"], 64 - 37);
  usage = turn(server, session, "x", R"({"append": true})")["usage"]["session"];
  EXPECT_EQ(usage["mode"], "append");
  EXPECT_EQ(usage["common_tokens"], 74 + 13);
  const ClientReply stream = server.post(
      kChatPath,
      turn_body(session, "y", R"({"stream": true, "stream_options": {"include_usage": true}})"));
  const std::vector<std::string> data = sse_data(stream.body);
  EXPECT_EQ(json::parse(data.at(data.size() - 2))["usage"]["session"]["mode"], "render");
  const json plain = json::parse(server.post(kChatPath, chat_body()).body);
  EXPECT_FALSE(plain["usage"].contains("session"));
}

TEST(HttpSession, AppendGoesBehindTheIds) {
  FakeBackend backend;
  backend.reply = "<t>hm</t>Yes";
  RunningServer server(&backend);
  const json session = created(server, R"({"messages": [{"role": "user", "content": "a"}]})");
  turn(server, session, "");
  turn(server, session, "b", R"({"append": true})");
  EXPECT_EQ(text_of(backend.wait_for_request(3)),
            "user: a\nassistant:<t>hm</t>Yes\nuser: b\nassistant:");
  turn(server, session, "c");
  EXPECT_EQ(text_of(backend.wait_for_request(4)),
            "user: a\nassistant:Yes\nuser: b\nassistant:Yes\nuser: c\nassistant:");
}

TEST(HttpSession, OneTurnAtATime) {
  FakeBackend backend(/*automatic=*/false);
  RunningServer server(&backend);
  const json session = created(server, R"({"messages": [{"role": "user", "content": "a"}],
                                           "prefill": false})");
  RawClient first(server.port());
  first.send(post_bytes(kChatPath, turn_body(session, "b")));
  const RequestId id = backend.wait_for_request(1).id;
  const ClientReply second = server.post(kChatPath, turn_body(session, "c"));
  EXPECT_EQ(second.status, 409);
  const json error = json::parse(second.body)["error"];
  EXPECT_EQ(error["code"], "session_busy");
  EXPECT_EQ(error["param"], "session_id");
  EXPECT_EQ(error["type"], "invalid_request_error");
  EXPECT_EQ(server.post(path_of(session, "rewind"), R"({"messages": 1})").status, 409);
  EXPECT_TRUE(shown(server, session)["running"]);
  EXPECT_EQ(metric(server, "thaw_session_conflicts_total"), 2);
  EXPECT_EQ(metric(server, "thaw_sessions_running"), 1);
  backend.emit_text(id, "yes");
  backend.emit_end(id);
  EXPECT_EQ(first.read_reply()->status, 200);
  const json now = shown(server, session);
  EXPECT_FALSE(now["running"]);
  EXPECT_EQ(now["num_messages"], 3);
}

TEST(HttpSession, ABrokenOffTurnLeavesNothing) {
  FakeBackend backend(/*automatic=*/false);
  RunningServer server(&backend);
  const json session = created(server, R"({"messages": [{"role": "user", "content": "a"}],
                                           "prefill": false})");
  RequestId id = 0;
  {
    RawClient client(server.port());
    client.send(post_bytes(kChatPath, turn_body(session, "b", R"({"stream": true})")));
    id = backend.wait_for_request(1).id;
    backend.emit(AdmittedEvent{id, 0});
    backend.emit_text(id, "ye");
    EXPECT_TRUE(client.read_until(R"("content":"e")"));
  }
  EXPECT_TRUE(backend.wait_for_cancel(id));
  // The hang-up was handled before this answer, on the same thread.
  const json now = shown(server, session);
  EXPECT_EQ(now["num_messages"], 1);
  EXPECT_FALSE(now["running"]);
  RawClient failed(server.port());
  failed.send(post_bytes(kChatPath, turn_body(session, "b")));
  backend.emit(FailedEvent{backend.wait_for_request(2).id, make_error(Errc::kUnavailable, "gone")});
  EXPECT_EQ(failed.read_reply()->status, 503);
  EXPECT_FALSE(shown(server, session)["running"]);
  EXPECT_EQ(shown(server, session)["num_messages"], 1);
}

TEST(HttpSession, AStreamThatWasReadToItsStopStringIsWhole) {
  FakeBackend backend(/*automatic=*/false);
  RunningServer server(&backend);
  const json session = created(server, R"({"messages": [{"role": "user", "content": "a"}],
                                           "prefill": false})");
  {
    RawClient client(server.port());
    client.send(post_bytes(kChatPath, turn_body(session, "b", R"({"stream": true, "stop": "!"})")));
    const RequestId id = backend.wait_for_request(1).id;
    backend.emit(AdmittedEvent{id, 0});
    backend.emit_text(id, "yes!");
    EXPECT_TRUE(client.read_until(R"("finish_reason":"stop")"));
  }
  // The worker's end of the request never comes: the hang-up ends the turn.
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (shown(server, session)["running"] && std::chrono::steady_clock::now() < deadline)
    std::this_thread::yield();
  const json now = shown(server, session, "?include=messages");
  EXPECT_FALSE(now["running"]);
  ASSERT_EQ(now["num_messages"], 3);
  EXPECT_EQ(now["messages"][2]["content"], "yes");
}

TEST(HttpSession, ForksStartWhereTheyAreCut) {
  FakeBackend backend;
  RunningServer server(&backend);
  const json session = created(server, R"({"messages": [{"role": "user", "content": "a"}]})");
  turn(server, session, "");
  turn(server, session, "b");
  const std::string before = "user: a\nassistant:Hello, world.\nuser: b\nassistant:Hello, world.";
  const auto fork = [&](const std::string& body) {
    const ClientReply reply = server.post(path_of(session, "fork"), body);
    if (reply.status != 200) throw std::runtime_error(reply.body);
    return json::parse(reply.body)["data"];
  };
  const json whole = fork(R"({"n": 3, "labels": ["x", "y"]})");
  ASSERT_EQ(whole.size(), 3U);
  EXPECT_EQ(whole[0]["tokens"], before.size());
  EXPECT_EQ(whole[0]["parent"], session["id"]);
  EXPECT_EQ(whole[0]["fork_tokens"], before.size());
  EXPECT_EQ(whole[1]["label"], "y");
  EXPECT_TRUE(whole[2]["label"].is_null());
  const json early = fork(R"({"cut": {"messages": 2}})")[0];
  turn(server, early, "c");
  EXPECT_EQ(text_of(backend.wait_for_request(4)),
            "user: a\nassistant:Hello, world.\nuser: c\nassistant:");
  const json inside = fork(R"({"cut": {"tokens": 23}})")[0];
  turn(server, inside, "", R"({"append": true})");
  EXPECT_EQ(text_of(backend.wait_for_request(5)), before.substr(0, 23));
  EXPECT_EQ(shown(server, inside, "?include=messages")["messages"][1]["content"],
            "HelloHello, world.");
  EXPECT_EQ(shown(server, session)["children"].size(), 5U);
  EXPECT_EQ(shown(server, session)["tokens"], before.size());
  EXPECT_EQ(metric(server, "thaw_sessions_forked_total"), 5);
}

TEST(HttpSession, AForkOfARunningTurn) {
  FakeBackend backend(/*automatic=*/false);
  RunningServer server(&backend);
  const json session = created(server, R"({"messages": [{"role": "user", "content": "a"}],
                                           "prefill": false})");
  RawClient client(server.port());
  client.send(post_bytes(kChatPath, turn_body(session, "", R"({"stream": true})")));
  const RequestId id = backend.wait_for_request(1).id;
  backend.emit(AdmittedEvent{id, 0});
  backend.emit_text(id, "abc");
  ASSERT_TRUE(client.read_until(R"("content":"c")"));
  const auto fork = [&](const std::string& body) {
    return json::parse(server.post(path_of(session, "fork"), body).body)["data"][0];
  };
  EXPECT_EQ(fork("{}")["tokens"], 8);
  const json child = fork(R"({"include_running": true})");
  EXPECT_EQ(child["tokens"], 8 + 10 + 3);
  EXPECT_EQ(shown(server, child, "?include=messages")["messages"][1]["content"], "abc");
  backend.emit_text(id, "def");
  backend.emit_end(id);
  ASSERT_TRUE(client.read_until("[DONE]"));
  EXPECT_EQ(shown(server, session)["tokens"], 8 + 10 + 6);
  EXPECT_EQ(shown(server, child)["tokens"], 8 + 10 + 3);
}

TEST(HttpSession, MadeOfARunningStreamAndOfOneThatEnded) {
  FakeBackend backend(/*automatic=*/false);
  RunningServer server(&backend);
  RawClient client(server.port());
  client.send(post_bytes(kChatPath, chat_body(R"("stream": true, "cache_salt": "s")")));
  const RequestId id = backend.wait_for_request(1).id;
  backend.emit(AdmittedEvent{id, 0});
  backend.emit_text(id, "abc");
  const auto head = client.read_until(R"("content":"c")");
  ASSERT_TRUE(head);
  const std::size_t at = head->find("chatcmpl-");
  const std::string response = head->substr(at, head->find_first_of("\"\r", at) - at);
  const json session = created(server, R"({"response_id": ")" + response + "\"}");
  EXPECT_EQ(session["cache_salt"], "s");
  EXPECT_EQ(session["tokens"], 22);
  EXPECT_EQ(shown(server, session, "?include=messages")["messages"][1]["content"], "abc");
  // It goes on where the stream was, with its ids.
  RawClient next(server.port());
  next.send(post_bytes(kChatPath, turn_body(session, "", R"({"append": true})")));
  EXPECT_EQ(text_of(backend.wait_for_request(2)), "user: Hi\nassistant:abc");
  EXPECT_EQ(backend.wait_for_request(2).cache_salt, "s");
  backend.emit_text(id, "def");
  backend.emit_end(id);
  ASSERT_TRUE(client.read_until("[DONE]"));
  EXPECT_EQ(created(server, R"({"response_id": ")" + response + "\"}")["tokens"], 25);
  const ClientReply choice =
      server.post(kSessionsPath, R"({"response_id": ")" + response + R"(", "choice": 1})");
  EXPECT_EQ(choice.status, 400);
  EXPECT_EQ(json::parse(choice.body)["error"]["param"], "choice");
}

TEST(HttpSession, RewindThenGoOnIsNeverHavingGoneFurther) {
  FakeBackend backend;
  RunningServer server(&backend);
  const std::string start = R"({"messages": [{"role": "user", "content": "a"}]})";
  const json session = created(server, start);
  turn(server, session, "");
  const ClientReply checkpoint = server.post(path_of(session, "checkpoint"), R"({"name": "here"})");
  ASSERT_EQ(checkpoint.status, 200);
  EXPECT_EQ(json::parse(checkpoint.body)["tokens"], 31);
  EXPECT_TRUE(json::parse(checkpoint.body)["saved"].is_null());
  const json other = created(server, start);
  turn(server, other, "");
  turn(server, other, "right");
  const std::vector<TokenId> right = backend.wait_for_request(5).prompt;
  std::size_t requests = 5;
  for (const char* to : {R"({"checkpoint": "here"})", R"({"messages": 2})", R"({"tokens": 31})"}) {
    turn(server, session, "wrong");
    const ClientReply reply = server.post(path_of(session, "rewind"), to);
    ASSERT_EQ(reply.status, 200) << reply.body;
    EXPECT_EQ(json::parse(reply.body)["num_messages"], 2);
    turn(server, session, "right");
    requests += 2;
    EXPECT_EQ(backend.wait_for_request(requests).prompt, right) << to;
  }
  const ClientReply unknown = server.post(path_of(session, "rewind"), R"({"checkpoint": "no"})");
  EXPECT_EQ(unknown.status, 404);
  EXPECT_EQ(json::parse(unknown.body)["error"]["param"], "checkpoint");
  // A fork may start from a checkpoint too, and one without a name gets a number.
  const json child = json::parse(
      server.post(path_of(session, "fork"), R"({"checkpoint": "here"})").body)["data"][0];
  EXPECT_EQ(child["tokens"], 31);
  EXPECT_EQ(json::parse(server.post(path_of(session, "checkpoint"), "").body)["name"], "2");
}

TEST(HttpSession, TreeShowsWhatIsShared) {
  FakeBackend backend;
  RunningServer server(&backend);
  const json root = created(server);
  const auto fork = [&](const json& parent) {
    return json::parse(server.post(path_of(parent, "fork"), "").body)["data"][0];
  };
  const json left = fork(root);
  const json right = fork(root);
  const json leaf = fork(left);
  turn(server, leaf, "x");
  turn(server, root, "y");
  const json tree = json::parse(server.get(path_of(leaf, "tree")).body);
  EXPECT_EQ(tree["root"], root["id"]);
  EXPECT_EQ(tree["current"], leaf["id"]);
  ASSERT_EQ(tree["nodes"].size(), 4U);
  EXPECT_EQ(tree["nodes"][0]["children"], json({left["id"], right["id"]}));
  EXPECT_EQ(tree["nodes"][3]["id"], leaf["id"]);
  EXPECT_EQ(tree["nodes"][3]["parent"], left["id"]);
  EXPECT_EQ(tree["nodes"][3]["shared_tokens"], 64);
  EXPECT_EQ(tree["nodes"][3]["shared_blocks"], 4);
  EXPECT_TRUE(tree["nodes"][3]["current"]);
  // Delete in the middle: the leaf hangs on the root.
  EXPECT_EQ(server.ask(ask_method("DELETE", path_of(left))).status, 200);
  const json after = json::parse(server.get(path_of(leaf, "tree")).body);
  ASSERT_EQ(after["nodes"].size(), 3U);
  EXPECT_EQ(shown(server, leaf)["parent"], root["id"]);
  const ClientReply all = server.ask(ask_method("DELETE", path_of(root) + "?recursive=true"));
  EXPECT_EQ(json::parse(all.body)["count"], 3);
  EXPECT_EQ(server.get(path_of(leaf)).status, 404);
}

TEST(HttpSession, AnotherTenantsSessionIsNotThere) {
  FakeBackend backend;
  ServerOptions options;
  options.api_keys = {{"anna-key", "anna"}, {"berta-key", "berta"}};
  RunningServer server(&backend, options);
  const std::string anna = "Authorization: Bearer anna-key\r\n";
  const std::string berta = "Authorization: Bearer berta-key\r\n";
  const json session = created(server, kSessionStart, anna);
  EXPECT_EQ(server.get(path_of(session), anna).status, 200);
  EXPECT_EQ(server.get(path_of(session)).status, 401);
  const json never = {{"id", std::string(32, '0')}};
  const auto same = [&](const ClientReply& theirs, const ClientReply& unknown) {
    EXPECT_EQ(theirs.status, 404);
    EXPECT_EQ(unknown.status, 404);
    json error = json::parse(theirs.body)["error"];
    EXPECT_EQ(error["code"], "session_not_found");
    // Nothing but the id tells one from the other.
    std::string text = error["message"];
    text.replace(text.find(session["id"].get<std::string>()), 32, std::string(32, '0'));
    EXPECT_EQ(text, json::parse(unknown.body)["error"]["message"].get<std::string>());
  };
  for (const char* verb : {"", "tree"})
    same(server.get(path_of(session, verb), berta), server.get(path_of(never, verb), berta));
  for (const char* verb : {"fork", "checkpoint", "rewind", "export"}) {
    const std::string body = std::string(verb) == "rewind" ? R"({"messages": 1})" : "{}";
    same(server.post(path_of(session, verb), body, berta),
         server.post(path_of(never, verb), body, berta));
  }
  same(server.post(kChatPath, turn_body(session, "x"), berta),
       server.post(kChatPath, turn_body(never, "x"), berta));
  EXPECT_TRUE(json::parse(server.get(kSessionsPath, berta).body)["data"].empty());
  EXPECT_EQ(json::parse(server.get(kSessionsPath, anna).body)["data"].size(), 1U);
  // The same for a completion to make a session of.
  const ClientReply chat = server.post(kChatPath, chat_body(), anna);
  const std::string id = json::parse(chat.body)["id"];
  EXPECT_EQ(server.post(kSessionsPath, R"({"response_id": ")" + id + "\"}", berta).status, 404);
  EXPECT_EQ(server.post(kSessionsPath, R"({"response_id": ")" + id + "\"}", anna).status, 200);
}

TEST(HttpSession, BadInputIsNamed) {
  FakeBackend backend;
  RunningServer server(&backend);
  const json session = created(server);
  const auto refused = [&](const std::string& path, const std::string& body, int status,
                           const json& param) {
    const ClientReply reply = server.post(path, body);
    EXPECT_EQ(reply.status, status) << path << " " << body;
    const json error = json::parse(reply.body)["error"];
    EXPECT_EQ(error["param"], param) << path << " " << body << error["message"];
    EXPECT_TRUE(error.contains("type") && error.contains("code"));
  };
  const std::string messages = R"("messages": [{"role": "user", "content": "x"}])";
  refused(kSessionsPath, "", 400, "messages");
  refused(kSessionsPath, "{", 400, nullptr);
  refused(kSessionsPath, R"({"messages": []})", 400, "messages");
  refused(kSessionsPath, R"({"messages": [{"content": "x"}]})", 400, "messages[0].role");
  refused(kSessionsPath, R"({"messages": [{"role": "refused", "content": "x"}]})", 400, "messages");
  refused(kSessionsPath, "{" + messages + R"(, "response_id": "x"})", 400, "messages");
  refused(kSessionsPath, R"({"response_id": "chatcmpl-0"})", 404, "response_id");
  refused(kSessionsPath, "{" + messages + R"(, "model": "x"})", 404, "model");
  refused(kSessionsPath, "{" + messages + R"(, "ttl_seconds": 0})", 400, "ttl_seconds");
  refused(kSessionsPath, "{" + messages + R"(, "ttl_seconds": 604801})", 400, "ttl_seconds");
  refused(kSessionsPath, "{" + messages + R"(, "ttl_seconds": 1e30})", 400, "ttl_seconds");
  refused(kSessionsPath, "{" + messages + R"(, "ttl_seconds": "60"})", 400, "ttl_seconds");
  refused(kSessionsPath, "{" + messages + R"(, "prefill": 1})", 400, "prefill");
  refused(kSessionsPath, "{" + messages + R"(, "label": ")" + std::string(201, 'x') + "\"}", 400,
          "label");
  refused(kSessionsPath, "{" + messages + R"(, "choice": -1})", 400, "choice");
  refused(kSessionsPath,
          R"({"messages": [{"role": "user", "content": ")" + std::string(1100, 'x') + "\"}]}", 400,
          "messages");
  const std::string fork = path_of(session, "fork");
  refused(fork, R"({"n": 0})", 400, "n");
  refused(fork, R"({"n": 65})", 400, "n");
  refused(fork, R"({"cut": 5})", 400, "cut");
  refused(fork, R"({"cut": {}})", 400, "cut");
  refused(fork, R"({"cut": {"tokens": 0}})", 400, "cut.tokens");
  refused(fork, R"({"cut": {"tokens": 65}})", 400, "cut.tokens");
  refused(fork, R"({"cut": {"tokens": 5, "messages": 1}})", 400, "cut");
  refused(fork, R"({"cut": {"messages": 2}})", 400, "cut.messages");
  refused(fork, R"({"labels": [1]})", 400, "labels[0]");
  refused(fork, R"({"labels": ["a", "b"]})", 400, "labels");
  refused(fork, R"({"ttl_seconds": 999999999})", 400, "ttl_seconds");
  refused(fork, R"({"checkpoint": "x"})", 404, "checkpoint");
  refused(fork, R"({"checkpoint": "x", "include_running": true})", 400, "include_running");
  refused(path_of(session, "checkpoint"), R"({"name": 1})", 400, "name");
  refused(path_of(session, "rewind"), "", 400, "checkpoint");
  refused(path_of(session, "rewind"), R"({"tokens": 3, "checkpoint": "x"})", 400, "checkpoint");
  refused(path_of(session, "rewind"), R"({"tokens": 500})", 400, "tokens");
  refused(path_of(session, "export"), R"({"file": "x"})", 400, "file");
  refused(std::string(kSessionsPath) + "/import", "{}", 400, "document");
  refused(std::string(kSessionsPath) + "/import", R"({"document": {}})", 400, "document.format");
  refused(std::string(kSessionsPath) + "/import", R"({"file": "x"})", 400, "file");
  const auto bad_turn = [&](const std::string& more, int status, const json& param) {
    refused(kChatPath, turn_body(session, "x", more), status, param);
  };
  bad_turn(R"({"n": 2})", 400, "n");
  bad_turn(R"({"append": 1})", 400, "append");
  bad_turn(R"({"append": true, "replace": true})", 400, "replace");
  bad_turn(R"({"add_generation_prompt": false})", 400, "add_generation_prompt");
  bad_turn(R"({"cache_salt": "other"})", 400, "cache_salt");
  bad_turn(R"({"session_id": 5})", 400, "session_id");
  bad_turn(R"({"session_id": "../x"})", 404, "session_id");
  bad_turn(R"({"max_tokens": 2000})", 400, "messages");
  bad_turn(R"({"replace": true, "messages": []})", 400, "messages");
  refused(kChatPath, chat_body(R"("append": true)"), 400, "append");
  refused(kChatPath, chat_body(R"("replace": true)"), 400, "replace");
  refused("/v1/completions", R"({"prompt": "x", "session_id": "y"})", 400, "session_id");
  EXPECT_FALSE(shown(server, session)["running"]);  // no refusal holds the session
  for (const char* query : {"?limit=0", "?limit=1001", "?limit=x", "?limit=-1", "?after=x", "?y=1"})
    EXPECT_EQ(server.get(std::string(kSessionsPath) + query).status, 400) << query;
  EXPECT_EQ(server.get(path_of(session) + "?include=secrets").status, 400);
  EXPECT_EQ(server.ask(ask_method("DELETE", path_of(session) + "?recursive=yes")).status, 400);
}

TEST(HttpSession, PathsAndMethods) {
  FakeBackend backend;
  RunningServer server(&backend);
  const json session = created(server);
  EXPECT_EQ(server.ask(ask_method("DELETE", kSessionsPath)).headers["allow"], "GET, HEAD, POST");
  EXPECT_EQ(server.post(path_of(session), "{}").headers["allow"], "GET, HEAD, DELETE");
  EXPECT_EQ(server.get(path_of(session, "fork")).headers["allow"], "POST");
  EXPECT_EQ(server.get(std::string(kSessionsPath) + "/import").status, 405);
  for (const char* path : {"/v1/sessions/", "/v1/sessionsx", "/v1/sessions//fork",
                           "/v1/sessions/../metrics", "/v1/sessions/a/b/c"})
    EXPECT_EQ(server.get(path).status, 404) << path;
  EXPECT_EQ(server.get(path_of(session, "nothing")).status, 404);
}

TEST(HttpSession, ListsPageByPage) {
  FakeBackend backend;
  RunningServer server(&backend);
  std::vector<std::string> ids;
  for (int i = 0; i < 5; ++i)
    ids.push_back(created(server)["id"]);
  std::vector<std::string> seen;
  std::string query = "?limit=2";
  for (int page = 0; page < 3; ++page) {
    const json list = json::parse(server.get(kSessionsPath + query).body);
    EXPECT_EQ(list["has_more"], page < 2);
    for (const json& session : list["data"])
      seen.push_back(session["id"]);
    query = "?limit=2&after=" + seen.back();
  }
  EXPECT_EQ(seen, ids);
}

TEST(HttpSession, KvIsKeptWithinItsBudget) {
  FakeBackend backend;
  ServerOptions options;
  options.session_kept_bytes = 150 * FakeBackend::kFakeTokenBytes;
  RunningServer server(&backend, options);
  const auto other_start = [](char letter) {
    return R"({"messages": [{"role": "user", "content": ")" + std::string(56, letter) + "\"}]}";
  };
  const json first = created(server, other_start('a'));
  const auto pin = [](const json& session) {
    return "session-" + session["id"].get<std::string>();
  };
  EXPECT_EQ(backend.kept().at(pin(first)).token_ids.size(), 48U);
  EXPECT_EQ(shown(server, first)["kv"]["tokens"], 48);
  const json second = created(server, other_start('b'));
  const json third = created(server, other_start('c'));
  EXPECT_EQ(metric(server, "thaw_session_kept_bytes"), 144 * 1024);
  // A fork shares what its parent has, and costs nothing.
  server.post(path_of(third, "fork"), R"({"n": 8})");
  EXPECT_EQ(metric(server, "thaw_session_kept_bytes"), 144 * 1024);
  EXPECT_EQ(metric(server, "thaw_sessions_kept"), 11);
  turn(server, first, "");  // 86 tokens, of which 80 are whole blocks: the second must go
  EXPECT_EQ(shown(server, first)["kv"]["tokens"], 80);
  const json gone = shown(server, second);
  EXPECT_EQ(gone["kv"]["kept"], false);
  EXPECT_EQ(gone["kv"]["given_up"], true);
  EXPECT_FALSE(backend.kept().contains(pin(second)));
  EXPECT_EQ(metric(server, "thaw_sessions_given_up_total"), 1);
  turn(server, second, "");  // the session stays and is kept again
  EXPECT_EQ(shown(server, second)["kv"]["kept"], true);
  server.ask(ask_method("DELETE", path_of(second)));
  EXPECT_FALSE(backend.kept().contains(pin(second)));
}

TEST(HttpSession, WorksWhereNothingCanBeKept) {
  FakeBackend backend;
  backend.set_trunk_error(make_error(Errc::kResourceExhausted, "the arena is full"));
  RunningServer server(&backend);
  const json session = created(server);
  EXPECT_EQ(shown(server, session)["kv"]["kept"], false);
  EXPECT_EQ(text_of_reply(turn(server, session, "x")), "Hello, world.");
}

TEST(HttpSession, LimitsAreAnswered) {
  FakeBackend backend;
  ServerOptions options;
  options.session_limits.max_sessions = 2;
  RunningServer server(&backend, options);
  const json session = created(server);
  const ClientReply fork = server.post(path_of(session, "fork"), R"({"n": 2})");
  EXPECT_EQ(fork.status, 429);
  EXPECT_EQ(json::parse(fork.body)["error"]["param"], "n");
  created(server);
  EXPECT_EQ(server.post(kSessionsPath, kSessionStart).status, 429);
  server.ask(ask_method("DELETE", path_of(session)));
  created(server);
}

}  // namespace
}  // namespace thaw::coalescer
