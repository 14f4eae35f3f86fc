#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "tests/coalescer/http_client.h"

namespace thaw::coalescer {
namespace {

using nlohmann::json;

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
  const ClientReply reply = server.post(kChatPath, chat_body(R"("model": "alias")"));
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
  EXPECT_EQ(reply.headers.at("x-request-id"), body["id"].get<std::string>());
  EXPECT_EQ(body["thaw_metadata"].size(), 2U);
  EXPECT_GE(body["thaw_metadata"]["latency_s"].get<double>(), 0.0);
  EXPECT_EQ(body["thaw_metadata"]["slot_id"], 0);
  const GenerateRequest request = backend.wait_for_request(1);
  EXPECT_EQ(request.model, "fake-model");  // one cache for all names
  EXPECT_EQ(request.sampling.max_tokens, 1024U - 19U);
}

TEST(HttpChat, StreamHasRoleTextEndAndUsage) {
  FakeBackend backend;
  RunningServer server(&backend);
  const ClientReply reply = server.post(
      kChatPath, chat_body(R"("stream": true, "stream_options": {"include_usage": true})"));
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
  client.send(post_bytes(kChatPath, chat_body(R"("stream": true)")));
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

TEST(HttpChat, ChoicesAreMultiplexedByIndex) {
  FakeBackend backend(/*automatic=*/false);
  RunningServer server(&backend);
  RawClient client(server.port());
  client.send(post_bytes(kChatPath, chat_body(R"("stream": true, "n": 3)")));
  const GenerateRequest request = backend.wait_for_request(1);
  EXPECT_EQ(request.num_choices, 3U);
  backend.emit(AdmittedEvent{request.id, 0});
  for (int round = 0; round < 4; ++round)
    for (std::uint32_t choice = 0; choice < 3; ++choice)
      backend.emit_text(request.id, std::string(1, static_cast<char>('a' + choice)), choice);
  backend.emit_end(request.id, /*stop=*/false);
  const std::vector<json> chunks = chunks_of(*client.read_reply());
  EXPECT_EQ(streamed_text(chunks, 0), "aaaa");
  EXPECT_EQ(streamed_text(chunks, 1), "bbbb");
  EXPECT_EQ(streamed_text(chunks, 2), "cccc");
  int roles = 0;
  int ends = 0;
  for (const json& chunk : chunks) {
    roles += chunk["choices"][0]["delta"].contains("role") ? 1 : 0;
    ends += chunk["choices"][0]["finish_reason"] == "length" ? 1 : 0;
  }
  EXPECT_EQ(roles, 3);
  EXPECT_EQ(ends, 3);
}

TEST(HttpChat, AStopStringEndsItsChoiceWhereOthersGoOn) {
  FakeBackend backend(/*automatic=*/false);
  RunningServer server(&backend);
  RawClient client(server.port());
  client.send(post_bytes(kChatPath, chat_body(R"("stop": "END", "n": 3)")));
  const RequestId id = backend.wait_for_request(1).id;
  backend.emit(AdmittedEvent{id, 0});
  for (const std::uint32_t choice : {0U, 1U, 2U})
    backend.emit_text(id, "some", choice);
  backend.emit_text(id, " END", 1);
  ASSERT_TRUE(backend.wait_for_end_of_choice(id, 1));
  EXPECT_TRUE(backend.cancelled().empty());
  backend.emit(FinishedEvent{id, 1, FinishReason::kCancelled, std::nullopt});
  backend.emit_text(id, " END", 0);
  ASSERT_TRUE(backend.wait_for_end_of_choice(id, 0));
  backend.emit_text(id, " more", 2);
  backend.emit(FinishedEvent{id, 0, FinishReason::kCancelled, std::nullopt});
  backend.emit(FinishedEvent{id, 2, FinishReason::kStop, ByteCodec::kEos});
  backend.emit(CompletedEvent{id, Usage{19, 0, 22}});
  const json body = json::parse(client.read_reply()->body);
  EXPECT_EQ(body["choices"][0]["message"]["content"], "some ");
  EXPECT_EQ(body["choices"][1]["message"]["content"], "some ");
  EXPECT_EQ(body["choices"][1]["finish_reason"], "stop");
  EXPECT_EQ(body["choices"][2]["message"]["content"], "some more");
}

TEST(HttpChat, StopStringCutsTheTextAndEndsTheRequest) {
  for (const bool stream : {false, true}) {
    FakeBackend backend(/*automatic=*/false);
    RunningServer server(&backend);
    RawClient client(server.port());
    client.send(
        post_bytes(kChatPath, chat_body(std::string(R"("stop": ["END", "never"], "stream": )") +
                                        (stream ? "true" : "false"))));
    const RequestId id = backend.wait_for_request(1).id;
    backend.emit(AdmittedEvent{id, 0});
    backend.emit_text(id, "some E text ENDmore and more");
    ASSERT_TRUE(backend.wait_for_cancel(id));
    backend.emit_text(id, "late");  // on its way when it was cancelled
    backend.emit(FinishedEvent{id, 0, FinishReason::kCancelled, std::nullopt});
    backend.emit(CompletedEvent{id, Usage{19, 0, 40}});
    const ClientReply reply = *client.read_reply();
    if (stream) {
      const std::vector<json> chunks = chunks_of(reply);
      EXPECT_EQ(streamed_text(chunks), "some E text ");
      EXPECT_EQ(chunks.back()["choices"][0]["finish_reason"], "stop");
      EXPECT_EQ(chunks.back()["choices"][0]["stop_reason"], "END");
    } else {
      const json body = json::parse(reply.body);
      EXPECT_EQ(body["choices"][0]["message"]["content"], "some E text ");
      EXPECT_EQ(body["choices"][0]["finish_reason"], "stop");
      EXPECT_EQ(body["usage"]["completion_tokens"], 15);
    }
  }
}

TEST(HttpChat, LogprobsOfChatAndCompletions) {
  FakeBackend backend;
  backend.reply = "a\xc3\xa9";
  RunningServer server(&backend);
  const json chat =
      json::parse(server.post(kChatPath, chat_body(R"("logprobs": true, "top_logprobs": 2)")).body);
  const json& content = chat["choices"][0]["logprobs"]["content"];
  ASSERT_EQ(content.size(), 3U);  // one for each token, though two make one character
  EXPECT_EQ(content[0]["token"], "a");
  EXPECT_EQ(content[0]["logprob"], -0.5);
  EXPECT_EQ(content[0]["bytes"], json::array({97}));
  EXPECT_EQ(content[0]["top_logprobs"].size(), 2U);
  EXPECT_EQ(content[1]["bytes"], json::array({0xc3}));
  EXPECT_EQ(backend.wait_for_request(1).sampling.top_logprobs, 2);

  const json text = json::parse(server.post(kTextPath, R"({"prompt": "x", "logprobs": 2})").body);
  const json& logprobs = text["choices"][0]["logprobs"];
  EXPECT_EQ(logprobs["tokens"].size(), 3U);
  EXPECT_EQ(logprobs["token_logprobs"][0], -0.5);
  EXPECT_EQ(logprobs["top_logprobs"][0]["z"], -2.0);
  EXPECT_EQ(logprobs["text_offset"], json::array({0, 1, 1}));

  std::size_t streamed = 0;
  for (const json& chunk :
       chunks_of(server.post(kChatPath, chat_body(R"("logprobs": true, "stream": true)"))))
    if (chunk["choices"][0]["logprobs"].is_object())
      streamed += chunk["choices"][0]["logprobs"]["content"].size();
  EXPECT_EQ(streamed, 3U);
}

TEST(HttpCompletions, PromptsInEveryForm) {
  FakeBackend backend;
  RunningServer server(&backend);
  const json one = json::parse(server.post(kTextPath, R"({"prompt": "abc"})").body);
  EXPECT_EQ(one["object"], "text_completion");
  EXPECT_EQ(one["choices"][0]["text"], "Hello, world.");
  EXPECT_EQ(backend.wait_for_request(1).sampling.max_tokens, 16U);
  EXPECT_EQ(backend.wait_for_request(1).prompt, (std::vector<TokenId>{256, 'a', 'b', 'c'}));

  const json two = json::parse(server.post(kTextPath, R"({"prompt": ["a", "b"], "n": 2})").body);
  ASSERT_EQ(two["choices"].size(), 4U);
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(two["choices"][i]["index"], i);
    EXPECT_EQ(two["choices"][i]["text"], "Hello, world.");
  }
  EXPECT_EQ(two["usage"]["prompt_tokens"], 4);
  EXPECT_EQ(two["usage"]["completion_tokens"], 4 * 14);

  EXPECT_EQ(server.post(kTextPath, R"({"prompt": [1, 2, 3]})").status, 200);
  EXPECT_EQ(backend.wait_for_request(4).prompt, (std::vector<TokenId>{1, 2, 3}));
  const ClientReply streamed =
      server.post(kTextPath, R"({"prompt": [[1, 2], [3]], "stream": true, "max_tokens": 5})");
  const std::vector<json> chunks = chunks_of(streamed);
  EXPECT_EQ(streamed_text(chunks, 0), "Hello");
  EXPECT_EQ(streamed_text(chunks, 1), "Hello");
  EXPECT_EQ(chunks.back()["choices"][0]["finish_reason"], "length");
}

TEST(HttpChat, ExplanationComesWithTheAnswer) {
  FakeBackend backend;
  RunningServer server(&backend);
  server.post(kChatPath, chat_body());
  const json body =
      json::parse(server.post(kChatPath, chat_body(R"("thaw": {"explain": true})")).body);
  EXPECT_EQ(body["thaw"]["request"], 2);
  EXPECT_EQ(body["thaw"]["shared_with"][0]["request"], 1);
  const std::vector<json> chunks =
      chunks_of(server.post(kChatPath, chat_body(R"("thaw": {"explain": true}, "stream": true)")));
  EXPECT_EQ(chunks.back()["thaw"]["request"], 3);
  EXPECT_TRUE(chunks.back()["choices"].empty());
}

TEST(HttpChat, FailureBeforeTheStreamIsAStatus) {
  FakeBackend backend(/*automatic=*/false);
  RunningServer server(&backend);
  for (const bool stream : {false, true}) {
    RawClient client(server.port());
    client.send(post_bytes(kChatPath, chat_body(stream ? R"("stream": true)" : "")));
    const RequestId id = backend.wait_for_request(stream ? 2 : 1).id;
    backend.emit(FailedEvent{id, make_error(Errc::kResourceExhausted, "no room")});
    const ClientReply reply = *client.read_reply();
    EXPECT_EQ(reply.status, 429);
    EXPECT_EQ(json::parse(reply.body)["error"]["message"], "no room");
    EXPECT_EQ(reply.headers.count("retry-after-ms"), 1U);
  }
}

TEST(HttpChat, FailureInTheStreamIsAnErrorFrame) {
  FakeBackend backend(/*automatic=*/false);
  RunningServer server(&backend);
  RawClient client(server.port());
  client.send(post_bytes(kChatPath, chat_body(R"("stream": true)")));
  const RequestId id = backend.wait_for_request(1).id;
  backend.emit(AdmittedEvent{id, 0});
  backend.emit_text(id, "half");
  EXPECT_NE(client.read_until(R"("content":"f")")->find("200 OK"), std::string::npos);
  backend.emit(FailedEvent{id, make_error(Errc::kUnavailable, "the worker died")});
  EXPECT_TRUE(client.read_until(R"(data: {"error":{"message":"the worker died")"));
  EXPECT_TRUE(client.read_until("0\r\n\r\n"));
  // The connection goes on.
  client.send(get_bytes("/health"));
  EXPECT_EQ(client.read_reply()->status, 200);
}

TEST(HttpChat, FieldsReachTheBackend) {
  FakeBackend backend;
  RunningServer server(&backend);
  const std::string fields = R"("temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1,
    "seed": 42, "max_completion_tokens": 9, "max_tokens": 8, "min_tokens": 2, "stop_token_ids": [5],
    "ignore_eos": true, "repetition_penalty": 1.5, "presence_penalty": 0.25,
    "frequency_penalty": -1, "logit_bias": {"65": -100, "66": 2.5}, "cache_salt": "salt",
    "priority": -3, "user": "u", "tools": [], "stop": null, "thaw": {"worker": 1},
    "response_format": {"type": "text"}, "a_field_of_tomorrow": {"x": []})";
  ASSERT_EQ(server.post(kChatPath, chat_body(fields)).status, 200);
  const GenerateRequest request = backend.wait_for_request(1);
  EXPECT_FLOAT_EQ(request.sampling.temperature, 0.5F);
  EXPECT_FLOAT_EQ(request.sampling.top_p, 0.9F);
  EXPECT_EQ(request.sampling.top_k, 7);
  EXPECT_FLOAT_EQ(request.sampling.min_p, 0.1F);
  EXPECT_EQ(request.sampling.seed, 42U);
  EXPECT_EQ(request.sampling.max_tokens, 9U);
  EXPECT_EQ(request.sampling.min_tokens, 2U);
  EXPECT_EQ(request.sampling.stop_token_ids, std::vector<TokenId>{5});
  EXPECT_TRUE(request.sampling.ignore_eos);
  EXPECT_FLOAT_EQ(request.sampling.repetition_penalty, 1.5F);
  EXPECT_FLOAT_EQ(request.sampling.presence_penalty, 0.25F);
  EXPECT_FLOAT_EQ(request.sampling.frequency_penalty, -1.0F);
  ASSERT_EQ(request.sampling.logit_bias.size(), 2U);
  EXPECT_EQ(request.sampling.logit_bias[0], (std::pair<TokenId, float>{65, -100.0F}));
  EXPECT_EQ(request.cache_salt, "salt");
  EXPECT_EQ(request.priority, -3);
  EXPECT_EQ(request.worker, 1U);

  ASSERT_EQ(server.post(kChatPath, chat_body()).status, 200);
  const GenerateRequest defaults = backend.wait_for_request(2);
  EXPECT_FLOAT_EQ(defaults.sampling.temperature, 1.0F);
  EXPECT_FLOAT_EQ(defaults.sampling.top_p, 1.0F);
  EXPECT_EQ(defaults.num_choices, 1U);
  ASSERT_EQ(server.post(kChatPath, chat_body()).status, 200);
  EXPECT_NE(defaults.sampling.seed, backend.wait_for_request(3).sampling.seed);
}

TEST(HttpChat, LongBodiesTakeTheTextThreads) {
  FakeBackend backend;
  ServerOptions options;
  options.max_model_len = 1U << 20;
  RunningServer server(&backend, options);
  const std::string content(200000, 'x');
  const ClientReply reply =
      server.post(kChatPath, R"({"messages": [{"role": "user", "content": ")" + content + "\"}]}");
  EXPECT_EQ(reply.status, 200);
  EXPECT_EQ(backend.wait_for_request(1).prompt.size(), content.size() + 17);
  const ClientReply tokens = server.post("/tokenize", R"({"prompt": ")" + content + "\"}");
  EXPECT_EQ(json::parse(tokens.body)["count"], content.size() + 1);
}

}  // namespace
}  // namespace thaw::coalescer
