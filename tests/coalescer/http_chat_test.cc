#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "tests/coalescer/http_client.h"

namespace thaw::coalescer {
namespace {

using nlohmann::json;

constexpr const char* kChat = "/v1/chat/completions";
constexpr const char* kText = "/v1/completions";

std::string streamed_text(const std::vector<json>& chunks, int choice = 0) {
  std::string text;
  for (const json& chunk : chunks)
    for (const json& part : chunk["choices"])
      if (part["index"] == choice)
        text += part.contains("text") ? part["text"].get<std::string>()
                                      : part["delta"].value("content", "");
  return text;
}

/// The chunks of a stream; checks that [DONE] ends it.
std::vector<json> chunks_of(const ClientReply& reply) {
  EXPECT_EQ(reply.status, 200);
  std::vector<std::string> data = sse_data(reply.body);
  EXPECT_FALSE(data.empty());
  EXPECT_EQ(data.back(), "[DONE]");
  data.pop_back();
  std::vector<json> chunks;
  for (const std::string& text : data)
    chunks.push_back(json::parse(text));
  return chunks;
}

TEST(HttpChat, WholeAnswerHasWhatClientsNeed) {
  FakeBackend backend;
  RunningServer server(&backend);
  const ClientReply reply = server.post(kChat, chat_body(R"("model": "alias")"));
  ASSERT_EQ(reply.status, 200) << reply.body;
  const json body = json::parse(reply.body);
  EXPECT_EQ(body["object"], "chat.completion");
  EXPECT_EQ(body["model"], "alias");
  EXPECT_EQ(body["id"].get<std::string>().rfind("chatcmpl-", 0), 0U);
  EXPECT_GT(body["created"].get<std::int64_t>(), 0);
  EXPECT_EQ(body["system_fingerprint"], "fake-1");
  ASSERT_EQ(body["choices"].size(), 1U);
  const json& choice = body["choices"][0];
  EXPECT_EQ(choice["index"], 0);
  EXPECT_EQ(choice["message"]["role"], "assistant");
  EXPECT_EQ(choice["message"]["content"], "Hello, world.");
  EXPECT_EQ(choice["finish_reason"], "stop");
  EXPECT_TRUE(choice["logprobs"].is_null());
  // "user: Hi\nassistant:" is 19 bytes; the reply has 13 and the stop token.
  EXPECT_EQ(body["usage"]["prompt_tokens"], 19);
  EXPECT_EQ(body["usage"]["completion_tokens"], 14);
  EXPECT_EQ(body["usage"]["total_tokens"], 33);
  EXPECT_EQ(body["usage"]["prompt_tokens_details"]["cached_tokens"], 9);
  EXPECT_EQ(reply.headers.at("x-request-id"), body["id"]);
  const GenerateRequest request = backend.wait_for_request(1);
  EXPECT_EQ(request.model, "fake-model");  // one cache for all names
  EXPECT_EQ(request.sampling.max_tokens, 1024U - 19U);
}

TEST(HttpChat, StreamHasRoleTextEndAndUsage) {
  FakeBackend backend;
  RunningServer server(&backend);
  const ClientReply reply =
      server.post(kChat, chat_body(R"("stream": true, "stream_options": {"include_usage": true})"));
  const std::vector<json> chunks = chunks_of(reply);
  ASSERT_GE(chunks.size(), 4U);
  EXPECT_EQ(reply.headers.at("content-type").rfind("text/event-stream", 0), 0U);
  const json& first = chunks.front();
  EXPECT_EQ(first["choices"][0]["delta"]["role"], "assistant");
  EXPECT_EQ(first["choices"][0]["delta"]["content"], "");
  for (const json& chunk : chunks) {
    EXPECT_EQ(chunk["object"], "chat.completion.chunk");
    EXPECT_EQ(chunk["id"], first["id"]);
    EXPECT_EQ(chunk["created"], first["created"]);
    EXPECT_EQ(chunk["model"], "fake-model");
  }
  EXPECT_EQ(streamed_text(chunks), "Hello, world.");
  EXPECT_EQ(chunks[chunks.size() - 2]["choices"][0]["finish_reason"], "stop");
  EXPECT_TRUE(chunks.back()["choices"].empty());
  EXPECT_EQ(chunks.back()["usage"]["completion_tokens"], 14);
  EXPECT_EQ(chunks.back()["usage"]["prompt_tokens_details"]["cached_tokens"], 9);
}

TEST(HttpChat, RoleChunkLeavesAtAdmission) {
  FakeBackend backend(/*automatic=*/false);
  RunningServer server(&backend);
  RawClient client(server.port());
  client.send(post_bytes(kChat, chat_body(R"("stream": true)")));
  const RequestId id = backend.wait_for_request(1).id;
  backend.emit(AdmittedEvent{id, 0});
  const auto head = client.read_until("\n\n");  // nothing has been generated
  ASSERT_TRUE(head);
  EXPECT_NE(head->find(R"("role":"assistant")"), std::string::npos);
  backend.emit_text(id, "a");
  EXPECT_NE(client.read_until("\n\n")->find(R"("content":"a")"), std::string::npos);
  backend.emit_end(id);
  EXPECT_TRUE(client.read_until("[DONE]"));
}

}  // namespace
}  // namespace thaw::coalescer
