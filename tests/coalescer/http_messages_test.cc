// Anthropic's Messages API over HTTP: keys, headers, errors, streams, counts, models.

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "tests/coalescer/http_client.h"

namespace thaw::coalescer {
namespace {

using nlohmann::json;

constexpr const char* kMessages = "/v1/messages";
constexpr const char* kVersion = "anthropic-version: 2023-06-01\r\n";

std::string body_with(const std::string& rest = R"("max_tokens": 20)") {
  return R"({"messages": [{"role": "user", "content": "Hi"}], )" + rest + "}";
}

/// The data of a stream's events.
std::vector<json> events_of(const ClientReply& reply) {
  constexpr std::string_view kData = "\ndata: ";
  std::vector<json> events;
  std::size_t at = 0;
  while ((at = reply.body.find(kData, at)) != std::string::npos) {
    at += kData.size();
    events.push_back(json::parse(reply.body.substr(at, reply.body.find('\n', at) - at)));
  }
  return events;
}

TEST(HttpMessages, AMessageIsAnswered) {
  FakeBackend backend;
  RunningServer server(&backend);
  const ClientReply reply = server.post(kMessages, body_with(), kVersion);
  ASSERT_EQ(reply.status, 200) << reply.body;
  const json body = json::parse(reply.body);
  EXPECT_EQ(body["content"], json::parse(R"([{"type": "text", "text": "Hello, world."}])"));
  EXPECT_EQ(body["stop_reason"], "end_turn");
  // "user: Hi\nassistant:" is 19 bytes, of which the fake has half.
  EXPECT_EQ(body["usage"]["input_tokens"], 10);
  EXPECT_EQ(body["usage"]["cache_read_input_tokens"], 9);
  EXPECT_EQ(body["usage"]["output_tokens"], 14);
  EXPECT_EQ(body["id"], reply.headers.at("request-id"));
  EXPECT_EQ(body["id"], reply.headers.at("x-request-id"));
}

TEST(HttpMessages, AStreamSaysTheSame) {
  FakeBackend backend;
  RunningServer server(&backend);
  const ClientReply reply = server.post(kMessages, body_with(R"("max_tokens": 5, "stream": true)"));
  ASSERT_EQ(reply.status, 200) << reply.body;
  const std::vector<json> events = events_of(reply);
  ASSERT_GE(events.size(), 6U);
  EXPECT_EQ(events[0]["type"], "message_start");
  EXPECT_EQ(events[0]["message"]["usage"]["input_tokens"], 19);
  EXPECT_EQ(events[0]["message"]["id"], reply.headers.at("request-id"));
  std::string text;
  for (const json& event : events)
    if (event["type"] == "content_block_delta") text += event["delta"]["text"];
  EXPECT_EQ(text, "Hello");
  const json& end = events[events.size() - 2];
  EXPECT_EQ(end["delta"]["stop_reason"], "max_tokens");
  EXPECT_EQ(end["usage"]["cache_read_input_tokens"], 9);
  EXPECT_EQ(end["usage"]["output_tokens"], 5);
  EXPECT_EQ(events.back()["type"], "message_stop");
  EXPECT_EQ(reply.body.find("[DONE]"), std::string::npos);
}

TEST(HttpMessages, AMessageStartsAtAdmission) {
  FakeBackend backend(/*automatic=*/false);
  RunningServer server(&backend);
  RawClient client(server.port());
  client.send(post_bytes(kMessages, body_with(R"("max_tokens": 5, "stream": true)")));
  const RequestId id = backend.wait_for_request(1).id;
  backend.emit(AdmittedEvent{id, 0});
  EXPECT_TRUE(client.read_until("event: ping\ndata: {\"type\":\"ping\"}\n\n").has_value());
  backend.emit(FailedEvent{id, make_error(Errc::kInternal, "the worker died")});
  const auto error = client.read_until("}\n\n");
  ASSERT_TRUE(error.has_value());
  EXPECT_NE(error->find("event: error\n"), std::string::npos) << *error;
  EXPECT_NE(error->find(R"("type":"api_error","message":"the worker died")"), std::string::npos);
}

TEST(HttpMessages, ErrorsHaveAnthropicsShape) {
  FakeBackend backend;
  RunningServer server(&backend);
  const auto error_of = [&](const ClientReply& reply) {
    const json body = json::parse(reply.body);
    EXPECT_EQ(body.at("type"), "error");
    EXPECT_EQ(body.at("request_id"), reply.headers.at("request-id"));
    return body["error"]["type"].get<std::string>();
  };
  EXPECT_EQ(error_of(server.post(kMessages, "{")), "invalid_request_error");
  EXPECT_EQ(error_of(server.post(kMessages, body_with(R"("temperature": 1)"))),
            "invalid_request_error");
  EXPECT_EQ(error_of(server.post(kMessages, body_with(R"("max_tokens": 1, "model": "other")"))),
            "not_found_error");
  EXPECT_EQ(error_of(server.get(kMessages)), "invalid_request_error");
  EXPECT_EQ(error_of(server.get("/v1/messages/batches")), "not_found_error");
  EXPECT_EQ(error_of(server.get("/v1/models/other", kVersion)), "not_found_error");
  // Others keep OpenAI's.
  EXPECT_TRUE(json::parse(server.get("/v1/models/other").body)["error"].contains("param"));
}

TEST(HttpMessages, AFullQueueSaysWhenToComeBack) {
  FakeBackend backend(/*automatic=*/false);
  ServerOptions options;
  options.max_queued_requests = 1;
  RunningServer server(&backend, options);
  RawClient waiting(server.port());
  waiting.send(post_bytes(kMessages, body_with()));
  backend.wait_for_request(1);
  const ClientReply refused = server.post(kMessages, body_with());
  EXPECT_EQ(refused.status, 429);
  EXPECT_EQ(json::parse(refused.body)["error"]["type"], "rate_limit_error");
  EXPECT_TRUE(refused.headers.contains("retry-after-ms"));
}

TEST(HttpMessages, EitherHeaderHasTheKey) {
  FakeBackend backend;
  ServerOptions options;
  options.api_keys = {{"one", "a"}, {"two", "b"}};
  RunningServer server(&backend, options);
  const auto tenant_with = [&](const std::string& headers) {
    const std::size_t before = backend.plans().size();
    const ClientReply reply = server.post(kMessages, body_with(), headers);
    if (reply.status != 200) return json::parse(reply.body)["error"]["type"].get<std::string>();
    return backend.wait_for_request(before + 1).tenant;
  };
  EXPECT_EQ(tenant_with("x-api-key: one\r\n"), "a");
  EXPECT_EQ(tenant_with("x-api-key: two\r\n"), "b");
  EXPECT_EQ(tenant_with("Authorization: Bearer one\r\n"), "a");
  EXPECT_EQ(tenant_with("Authorization: Bearer none\r\nx-api-key: two\r\n"), "b");
  EXPECT_EQ(tenant_with("x-api-key: three\r\n"), "authentication_error");
  EXPECT_EQ(tenant_with(""), "authentication_error");
}

TEST(HttpMessages, CountsAreThoseOfTheAnswer) {
  FakeBackend backend;
  RunningServer server(&backend);
  for (const std::string& text : {std::string("Hi"), std::string(5000, 'x')}) {
    const json body = {{"system", "Be short."},
                       {"messages", {{{"role", "user"}, {"content", text}}}}};
    const ClientReply counted = server.post("/v1/messages/count_tokens", body.dump());
    ASSERT_EQ(counted.status, 200) << counted.body;
    EXPECT_EQ(json::parse(counted.body)["input_tokens"], 18 + 7 + text.size() + 10);
  }
  EXPECT_EQ(server.post("/v1/messages/count_tokens", "{}").status, 400);
}

TEST(HttpMessages, WhatIsMarkedIsKept) {
  FakeBackend backend;
  RunningServer server(&backend);
  const json mark = {{"type", "ephemeral"}, {"ttl", "1h"}};
  const json system = {{{"type", "text"}, {"text", std::string(60, 's')}, {"cache_control", mark}}};
  const json body = {
      {"system", system}, {"messages", {{{"role", "user"}, {"content", "Hi"}}}}, {"max_tokens", 0}};
  const ClientReply reply = server.post(kMessages, body.dump());
  ASSERT_EQ(reply.status, 200) << reply.body;
  const json answer = json::parse(reply.body);
  EXPECT_TRUE(answer["content"].empty());
  EXPECT_EQ(answer["stop_reason"], "max_tokens");
  // "system: ", the text, "\nuser: " are 75 bytes of 88; the fake has half of all.
  EXPECT_EQ(answer["usage"]["cache_creation_input_tokens"], 75 - 44);
  EXPECT_EQ(answer["usage"]["cache_creation"]["ephemeral_1h_input_tokens"], 75 - 44);
  EXPECT_EQ(answer["usage"]["input_tokens"], 13);
  const auto kept = backend.kept();
  ASSERT_EQ(kept.size(), 1U);
  EXPECT_EQ(kept.begin()->second.token_ids.size(), 64U);
  EXPECT_EQ(kept.begin()->second.ttl, std::chrono::hours(1));
}

TEST(HttpMessages, MoreThanFitsIsAsMuchAsFits) {
  FakeBackend backend;
  backend.reply = std::string(20000, 'x');
  RunningServer server(&backend);
  const ClientReply reply = server.post(kMessages, body_with(R"("max_tokens": 100000)"));
  ASSERT_EQ(reply.status, 200) << reply.body;
  EXPECT_EQ(json::parse(reply.body)["stop_reason"], "model_context_window_exceeded");
}

TEST(HttpMessages, APromptThatDoesNotFitSaysSoInAnthropicsWords) {
  FakeBackend backend;
  RunningServer server(&backend);
  const auto message_of = [&](std::size_t length) {
    const ClientReply reply =
        server.post(kMessages, R"({"max_tokens": 5, "messages": [{"role": "user", "content": ")" +
                                   std::string(length, 'x') + "\"}]}");
    EXPECT_EQ(reply.status, 400);
    const json error = json::parse(reply.body)["error"];
    EXPECT_EQ(error["details"]["error_code"], "context_length_exceeded");
    return error["message"].get<std::string>();
  };
  // "user: ...\nassistant:" has 17 bytes beside the text.
  EXPECT_EQ(message_of(2000), "prompt is too long: 2017 tokens > 1023 maximum");
  EXPECT_EQ(message_of(1024 - 17), "prompt is too long: 1024 tokens > 1023 maximum");
}

/// With the length in front nothing of the body is read, and not even the head is taken as one.
TEST(HttpMessages, AHugeBodyIsRefusedInAnthropicsShape) {
  FakeBackend backend;
  ServerOptions options;
  options.max_body_bytes = 1U << 20;
  RunningServer server(&backend, options);
  RawClient client(server.port());
  client.send("POST /v1/messages HTTP/1.1\r\nHost: t\r\nContent-Length: 104857600\r\n\r\n");
  const auto reply = client.read_reply();
  ASSERT_TRUE(reply);
  EXPECT_EQ(reply->status, 413);
  const json body = json::parse(reply->body);
  EXPECT_EQ(body["type"], "error");
  EXPECT_EQ(body["error"]["type"], "request_too_large");
  EXPECT_EQ(body["request_id"], reply->headers.at("request-id"));
}

TEST(HttpMessages, ModelsForWhoNamesTheVersion) {
  FakeBackend backend;
  auto models = std::make_shared<ServedModels>();
  for (const char* name : {"a", "b", "c"}) {
    ServedModel model;
    model.names = {name};
    model.max_model_len = 128;
    model.codec = std::make_shared<ByteCodec>();
    model.created = 1700000000;
    ASSERT_TRUE(models->add(std::move(model)));
  }
  RunningServer server(&backend, models);
  EXPECT_EQ(json::parse(server.get("/v1/models").body)["object"], "list");
  const auto page = [&](const std::string& query) {
    const json body = json::parse(server.get("/v1/models" + query, kVersion).body);
    std::string ids;
    for (const json& model : body["data"])
      ids += model["id"].get<std::string>();
    EXPECT_EQ(body["first_id"], ids.substr(0, 1));
    EXPECT_EQ(body["last_id"], ids.substr(ids.size() - 1));
    return ids + (body["has_more"].get<bool>() ? "+" : "");
  };
  EXPECT_EQ(page(""), "abc");
  EXPECT_EQ(page("?limit=2"), "ab+");
  EXPECT_EQ(page("?limit=2&after_id=b"), "c");
  EXPECT_EQ(page("?before_id=c&limit=1"), "b+");
  EXPECT_EQ(page("?before_id=c"), "ab");
  EXPECT_EQ(server.get("/v1/models?limit=0", kVersion).status, 400);
  const json model = json::parse(server.get("/v1/models/b", kVersion).body);
  EXPECT_EQ(model["type"], "model");
  EXPECT_EQ(model["display_name"], "b");
  EXPECT_EQ(model["created_at"], "2023-11-14T22:13:20Z");
}

}  // namespace
}  // namespace thaw::coalescer
