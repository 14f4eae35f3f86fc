// HTTP itself, and what arrives from clients that are broken or hostile.

#include <unistd.h>

#include <fstream>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "tests/coalescer/http_client.h"

namespace thaw::coalescer {
namespace {

using nlohmann::json;
using std::chrono::milliseconds;

TEST(HttpProtocol, ManyRequestsOnOneConnection) {
  FakeBackend backend;
  RunningServer server(&backend);
  RawClient client(server.port());
  for (int i = 0; i < 20; ++i) {
    client.send(post_bytes(kChatPath, chat_body(i % 2 == 0 ? "" : R"("stream": true)")));
    ASSERT_EQ(client.read_reply()->status, 200);
  }
}

TEST(HttpProtocol, PipelinedRequestsAreAnsweredInOrder) {
  FakeBackend backend;
  RunningServer server(&backend);
  RawClient client(server.port());
  client.send(post_bytes(kChatPath, chat_body()) + get_bytes("/version") +
              post_bytes(kChatPath, chat_body(R"("stream": true)")) + get_bytes("/nothing"));
  EXPECT_NE(client.read_reply()->body.find("chat.completion"), std::string::npos);
  EXPECT_EQ(json::parse(client.read_reply()->body)["version"], "1.2.3");
  EXPECT_NE(client.read_reply()->body.find("[DONE]"), std::string::npos);
  EXPECT_EQ(client.read_reply()->status, 404);
}

TEST(HttpProtocol, AnyCutOfTheBytesIsTheSameRequest) {
  FakeBackend backend;
  RunningServer server(&backend);
  RawClient client(server.port());
  for (const char c : post_bytes(kChatPath, chat_body()))
    client.send({&c, 1});
  EXPECT_EQ(client.read_reply()->status, 200);
}

TEST(HttpProtocol, ChunkedBody) {
  FakeBackend backend;
  RunningServer server(&backend);
  RawClient client(server.port());
  const std::string body = chat_body();
  client.send(
      "POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n");
  client.send("5\r\n" + body.substr(0, 5) + "\r\n");
  char size[16];
  std::snprintf(size, sizeof(size), "%zx", body.size() - 5);
  client.send(std::string(size) + "\r\n" + body.substr(5) + "\r\n0\r\n\r\n");
  EXPECT_EQ(client.read_reply()->status, 200);
  client.send(get_bytes("/health"));
  EXPECT_EQ(client.read_reply()->status, 200);
}

TEST(HttpProtocol, ExpectContinue) {
  FakeBackend backend;
  RunningServer server(&backend);
  RawClient client(server.port());
  const std::string whole = post_bytes(kChatPath, chat_body(), "Expect: 100-continue\r\n");
  const std::size_t head = whole.find("\r\n\r\n") + 4;
  client.send(whole.substr(0, head));
  EXPECT_EQ(*client.read_until("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  client.send(whole.substr(head));
  EXPECT_EQ(client.read_reply()->status, 200);
  EXPECT_EQ(server.post(kChatPath, chat_body(), "Expect: a-miracle\r\n").status, 417);
}

TEST(HttpProtocol, Http10EndsWithTheConnection) {
  FakeBackend backend;
  RunningServer server(&backend);
  const std::string body = chat_body(R"("stream": true)");
  RawClient client(server.port());
  client.send("POST /v1/chat/completions HTTP/1.0\r\nContent-Length: " +
              std::to_string(body.size()) + "\r\n\r\n" + body);
  const ClientReply reply = *client.read_reply();
  EXPECT_EQ(reply.status, 200);
  EXPECT_EQ(reply.headers.count("transfer-encoding"), 0U);
  EXPECT_EQ(sse_data(reply.body).back(), "[DONE]");
}

TEST(HttpProtocol, HeadHasNoBody) {
  FakeBackend backend;
  RunningServer server(&backend);
  RawClient client(server.port());
  client.send("HEAD /health HTTP/1.1\r\nHost: t\r\n\r\n");
  const auto head = client.read_until("\r\n\r\n");
  EXPECT_NE(head->find("200 OK"), std::string::npos);
  client.send(get_bytes("/version"));
  EXPECT_EQ(json::parse(client.read_reply()->body)["version"], "1.2.3");
}

TEST(HttpProtocol, EveryAnswerHasARequestId) {
  FakeBackend backend;
  RunningServer server(&backend);
  std::set<std::string> ids;
  const auto is_named = [&](const ClientReply& reply) {
    const auto id = reply.headers.find("x-request-id");
    return id != reply.headers.end() && id->second.starts_with("req-") &&
           ids.insert(id->second).second;
  };
  EXPECT_TRUE(is_named(server.get("/health")));
  EXPECT_TRUE(is_named(server.get("/v1/models")));
  EXPECT_TRUE(is_named(server.get("/v1/nothing")));
  EXPECT_TRUE(is_named(server.post(kChatPath, "{")));
  EXPECT_TRUE(is_named(server.post(kChatPath, chat_body(R"("model": "other")"))));
  EXPECT_TRUE(is_named(server.post(kChatPath, chat_body(), "Content-Encoding: gzip\r\n")));
}

TEST(HttpProtocol, UnknownPathsAndMethods) {
  FakeBackend backend;
  RunningServer server(&backend);
  EXPECT_EQ(server.get("/v1/nothing").status, 404);
  const ClientReply wrong = server.get(kChatPath);
  EXPECT_EQ(wrong.status, 405);
  EXPECT_EQ(wrong.headers.at("allow"), "POST");
  EXPECT_EQ(server.post("/health", "{}").headers.at("allow"), "GET, HEAD");
  EXPECT_EQ(server.get("/health?verbose=1").status, 200);
}

TEST(HttpProtocol, CompressedBodiesAreRefused) {
  FakeBackend backend;
  RunningServer server(&backend);
  EXPECT_EQ(server.post(kChatPath, chat_body(), "Content-Encoding: gzip\r\n").status, 415);
}

TEST(HttpProtocol, KeysNameTenants) {
  FakeBackend backend;
  ServerOptions options;
  options.api_keys = {{"key-one", "one"}, {"key-two", "two"}};
  RunningServer server(&backend, options);
  EXPECT_EQ(server.get("/health").status, 200);
  EXPECT_EQ(server.get("/metrics").status, 200);
  for (const char* path : {"/v1/models", "/v1/forks/recent", "/admin/pool"})
    EXPECT_EQ(server.get(path).status, 401) << path;
  const ClientReply refused =
      server.post(kChatPath, chat_body(), "Authorization: Bearer key-on\r\n");
  EXPECT_EQ(refused.status, 401);
  EXPECT_EQ(json::parse(refused.body)["error"]["code"], "invalid_api_key");
  EXPECT_EQ(server.post(kChatPath, chat_body(), "Authorization: Basic key-one\r\n").status, 401);
  EXPECT_EQ(server.post(kChatPath, chat_body(), "Authorization: Bearer key-one\r\n").status, 200);
  EXPECT_EQ(server.post(kChatPath, chat_body(), "authorization: bearer key-two\r\n").status, 200);
  EXPECT_EQ(backend.wait_for_request(1).tenant, "one");
  EXPECT_EQ(backend.wait_for_request(2).tenant, "two");
  // Each tenant sees its own requests.
  const json seen =
      json::parse(server.get("/v1/forks/recent", "Authorization: Bearer key-two\r\n").body);
  ASSERT_EQ(seen["windows"].size(), 1U);
  EXPECT_EQ(seen["windows"][0]["requests"][0]["request"], 2);
}

std::size_t resident_bytes() {
  std::ifstream file("/proc/self/statm");
  std::size_t total = 0;
  std::size_t resident = 0;
  file >> total >> resident;
  return resident * static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
}

struct BadBody {
  const char* path;
  std::string body;
  int status;
  const char* param;  ///< nullptr: null
  const char* mentions;
};

TEST(HttpBadInput, BodiesAreRefusedByName) {
  FakeBackend backend;
  RunningServer server(&backend);
  const std::string deep = std::string(5000, '[') + std::string(5000, ']');
  const std::string user = R"("messages": [{"role": "user", "content": "Hi"}])";
  const std::vector<BadBody> cases = {
      {kChatPath, "", 400, nullptr, "empty"},
      {kChatPath, "{", 400, nullptr, "not valid JSON"},
      {kChatPath, "[]", 400, nullptr, "a list"},
      {kChatPath, "\"text\"", 400, nullptr, "a string"},
      {kChatPath, "{\"messages\": [{\"role\": \"user\", \"content\": \"\xff\xfe\"}]}", 400, nullptr,
       "UTF-8"},
      {kChatPath, R"({"messages": [{"role": "user", "content": "\ud800"}]})", 400, nullptr, "JSON"},
      {kChatPath, R"({"x": )" + deep + "}", 400, nullptr, "deeper than 100"},
      {kChatPath, "{}", 400, "messages", "missing"},
      {kChatPath, R"({"messages": []})", 400, "messages", "missing"},
      {kChatPath, R"({"messages": {}})", 400, "messages", "an object"},
      {kChatPath, R"({"messages": ["hi"]})", 400, "messages[0]", "a string"},
      {kChatPath, R"({"messages": [{"content": "x"}]})", 400, "messages[0].role", "role"},
      {kChatPath, R"({"messages": [{"role": "user"}]})", 400, "messages[0].content", "missing"},
      {kChatPath, R"({"messages": [{"role": "user", "content": 5}]})", 400, "messages[0].content",
       "a number"},
      {kChatPath, R"({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]})", 400,
       "messages[0].content[0]", "image_url"},
      {kChatPath, R"({"messages": [{"role": "refused", "content": ""}]})", 400, "messages",
       "refuses"},
      {kChatPath, "{" + user + R"(, "model": "gpt-9"})", 404, "model", "gpt-9"},
      {kChatPath, "{" + user + R"(, "model": 7})", 400, "model", "a string"},
      {kChatPath, "{" + user + R"(, "max_tokens": 0})", 400, "max_tokens", "0"},
      {kChatPath, "{" + user + R"(, "max_tokens": -1})", 400, "max_tokens", "-1"},
      {kChatPath, "{" + user + R"(, "max_tokens": 1.5})", 400, "max_tokens", "1.5"},
      {kChatPath, "{" + user + R"(, "max_tokens": "many"})", 400, "max_tokens", "many"},
      {kChatPath, "{" + user + R"(, "max_tokens": 1000000})", 400, "messages", "1024"},
      {kChatPath, "{" + user + R"(, "max_tokens": 1e300})", 400, "max_tokens", "e+300"},
      {kChatPath, "{" + user + R"(, "max_tokens": 99999999999999999999999})", 400, "max_tokens",
       "e+22"},
      {kChatPath, "{" + user + R"(, "temperature": 2.1})", 400, "temperature", "from 0 to 2"},
      {kChatPath, "{" + user + R"(, "temperature": -0.1})", 400, "temperature", "from 0 to 2"},
      {kChatPath, "{" + user + R"(, "temperature": "hot"})", 400, "temperature", "hot"},
      {kChatPath, "{" + user + R"(, "temperature": true})", 400, "temperature", "true"},
      {kChatPath, "{" + user + R"(, "top_p": 0})", 400, "top_p", "above 0"},
      {kChatPath, "{" + user + R"(, "n": 65})", 400, "n", "from 1 to 64"},
      {kChatPath, "{" + user + R"(, "n": 0})", 400, "n", "0"},
      {kChatPath, "{" + user + R"(, "stop": ""})", 400, "stop", "at least 1"},
      {kChatPath, "{" + user + R"(, "stop": [1]})", 400, "stop[0]", "1"},
      {kChatPath, "{" + user + R"(, "logit_bias": {"a": 1}})", 400, "logit_bias", "\"a\""},
      {kChatPath, "{" + user + R"(, "logit_bias": {"99999": 1}})", 400, "logit_bias", "99999"},
      {kChatPath, "{" + user + R"(, "logit_bias": {"1": 101}})", 400, "logit_bias.1", "101"},
      {kChatPath, "{" + user + R"(, "stop_token_ids": [258]})", 400, "stop_token_ids[0]", "258"},
      {kChatPath, "{" + user + R"(, "top_logprobs": 3})", 400, "top_logprobs", "logprobs"},
      {kChatPath, "{" + user + R"(, "top_logprobs": 21, "logprobs": true})", 400, "top_logprobs",
       "20"},
      {kChatPath, "{" + user + R"(, "stream": "yes"})", 400, "stream", "yes"},
      {kChatPath, "{" + user + R"(, "stream_options": {"include_usage": 1}})", 400,
       "stream_options.include_usage", "true or false"},
      {kChatPath, "{" + user + R"(, "min_tokens": 9, "max_tokens": 8})", 400, "min_tokens", "9"},
      {kChatPath, "{" + user + R"(, "tool_choice": "required"})", 400, "tool_choice", "no `tools`"},
      {kChatPath, "{" + user + R"(, "tool_choice": {"type": "function"}})", 400,
       "tool_choice.function.name", "missing"},
      {kChatPath, "{" + user + R"(, "tool_choice": "sometimes"})", 400, "tool_choice", "sometimes"},
      {kChatPath, "{" + user + R"(, "tools": ["f"]})", 400, "tools[0]", "a string"},
      {kChatPath, "{" + user + R"(, "response_format": {"type": "xml"}})", 400,
       "response_format.type", "xml"},
      {kChatPath, "{" + user + R"(, "thaw": {"worker": -1}})", 400, "thaw.worker", "-1"},
      {kChatPath, "{" + user + R"(, "seed": 1.5})", 400, "seed", "1.5"},
      {kChatPath,
       R"({"messages": [{"role": "user", "content": ")" + std::string(1100, 'x') + "\"}]}", 400,
       "messages", "1117"},
      {kTextPath, "{}", 400, "prompt", "missing"},
      {kTextPath, R"({"prompt": []})", 400, "prompt", "not empty"},
      {kTextPath, R"({"prompt": ""})", 400, "prompt", "empty"},
      {kTextPath, R"({"prompt": 5})", 400, "prompt", "5"},
      {kTextPath, R"({"prompt": [1, 999]})", 400, "prompt", "prompt[1]"},
      {kTextPath, R"({"prompt": [1, -4]})", 400, "prompt", "prompt[1]"},
      {kTextPath, R"({"prompt": [[1], [true]]})", 400, "prompt[1]", "prompt[1][0]"},
      {kTextPath, R"({"prompt": ["a", 1]})", 400, "prompt[1]", "a number"},
      {kTextPath, R"({"prompt": "a", "echo": 1})", 400, "echo", "true or false"},
      {kTextPath, R"({"prompt": "a", "use_beam_search": true})", 400, "use_beam_search",
       "not supported"},
      {kTextPath, R"({"prompt": "a", "best_of": 1, "n": 2})", 400, "best_of", "`n` is 2"},
      {kTextPath, R"({"prompt": "a", "best_of": 2, "stream": true})", 400, "best_of",
       "in a stream"},
      {kChatPath, "{" + user + R"(, "best_of": 2})", 400, "best_of", "/v1/completions"},
      {kTextPath, R"({"prompt": "a", "suffix": "b"})", 400, "suffix", "not supported"},
      {kTextPath, R"({"prompt": "a", "logprobs": true})", 400, "logprobs", "true"},
      {"/tokenize", "{}", 400, "prompt", "missing"},
      {"/detokenize", R"({"tokens": [5000]})", 400, "tokens[0]", "5000"},
  };
  RawClient client(server.port());
  for (const BadBody& bad : cases) {
    SCOPED_TRACE(bad.body.substr(0, 200));
    ASSERT_TRUE(client.send(post_bytes(bad.path, bad.body)));
    const auto reply = client.read_reply();
    ASSERT_TRUE(reply);
    EXPECT_EQ(reply->status, bad.status) << reply->body;
    const json error = json::parse(reply->body)["error"];
    EXPECT_EQ(error["type"], "invalid_request_error");
    EXPECT_NE(error["message"].get<std::string>().find(bad.mentions), std::string::npos)
        << error["message"];
    if (bad.param == nullptr)
      EXPECT_TRUE(error["param"].is_null()) << error["param"];
    else
      EXPECT_EQ(error["param"], bad.param);
  }
  EXPECT_EQ(backend.num_plans(), 0U);  // nothing of it reached the backend
  client.send(post_bytes(kChatPath, chat_body()));
  EXPECT_EQ(client.read_reply()->status, 200);  // on the same connection
}

TEST(HttpBadInput, ContextLengthNamesBothNumbers) {
  FakeBackend backend;
  RunningServer server(&backend);
  const ClientReply reply =
      server.post(kTextPath, R"({"prompt": ")" + std::string(2000, 'x') + "\"}");
  const json error = json::parse(reply.body)["error"];
  EXPECT_EQ(error["code"], "context_length_exceeded");
  EXPECT_EQ(error["message"],
            "This model's maximum context length is 1024 tokens. However, the prompt has 2001; it "
            "must leave room for at least one");
  const ClientReply full =
      server.post(kTextPath, R"({"max_tokens": 100, "prompt": ")" + std::string(1000, 'x') + "\"}");
  EXPECT_EQ(json::parse(full.body)["error"]["message"],
            "This model's maximum context length is 1024 tokens. However, the prompt has 1001 and "
            "`max_tokens` asks for 100 more (1101 in all); at most 23 fit");
}

TEST(HttpBadInput, GarbageIsRefusedAndTheConnectionEnds) {
  FakeBackend backend;
  RunningServer server(&backend);
  for (const std::string& bytes :
       {std::string("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 11),
        std::string("HELO\r\n\r\n"), std::string("GET / HTTP/9.9\r\n\r\n"),
        std::string("GET /\r\n\r\n"), std::string("GET / HTTP/1.1\r\nno colon here\r\n\r\n"),
        std::string("POST /v1/completions HTTP/1.1\r\nContent-Length: -5\r\n\r\n"),
        std::string("POST /v1/completions HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: "
                    "6\r\n\r\n"),
        std::string("POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")}) {
    SCOPED_TRACE(bytes);
    RawClient client(server.port());
    client.send(bytes);
    const auto reply = client.read_reply();
    ASSERT_TRUE(reply);
    EXPECT_EQ(reply->status, 400);
    EXPECT_EQ(reply->headers.at("connection"), "close");
    client.close();
  }
  EXPECT_EQ(server.post(kChatPath, chat_body()).status, 200);
}

TEST(HttpBadInput, HugeBodyIsRefusedBeforeItIsRead) {
  FakeBackend backend;
  RunningServer server(&backend);
  constexpr std::uint64_t kSize = 100U << 20;
  RawClient client(server.port());
  client.send("POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nContent-Length: " +
              std::to_string(kSize) + "\r\n\r\n");
  const std::string piece(1U << 20, 'x');
  const std::size_t before = resident_bytes();
  for (int i = 0; i < 100; ++i)
    if (!client.send(piece)) break;
  const auto reply = client.read_reply();
  ASSERT_TRUE(reply);
  EXPECT_EQ(reply->status, 413);
  EXPECT_LT(resident_bytes(), before + (32U << 20));
  EXPECT_EQ(json::parse(reply->body)["error"]["type"], "invalid_request_error");
  EXPECT_EQ(server.post(kChatPath, chat_body()).status, 200);
}

TEST(HttpBadInput, HugeChunkedBodyIsRefused) {
  FakeBackend backend;
  ServerOptions options;
  options.max_body_bytes = 1U << 20;
  RunningServer server(&backend, options);
  RawClient client(server.port());
  client.send("POST /v1/chat/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n");
  const std::string piece = "10000\r\n" + std::string(0x10000, 'x') + "\r\n";
  for (int i = 0; i < 64; ++i)
    if (!client.send(piece)) break;
  EXPECT_EQ(client.read_reply()->status, 413);
}

TEST(HttpBadInput, UnfinishedBodiesOfManyClientsAreBounded) {
  FakeBackend backend;
  ServerOptions options;
  options.max_body_bytes = 1U << 20;
  RunningServer server(&backend, options);
  std::vector<std::unique_ptr<RawClient>> clients;
  int refused = 0;
  for (int i = 0; i < 8; ++i) {
    clients.push_back(std::make_unique<RawClient>(server.port()));
    clients.back()->send("POST /v1/completions HTTP/1.1\r\nContent-Length: 1048576\r\n\r\n" +
                         std::string(900000, ' '));
    if (i < 4) continue;  // these fit
    const auto reply = clients.back()->read_reply();
    ASSERT_TRUE(reply);
    refused += reply->status == 503 ? 1 : 0;
    if (refused > 0) break;
  }
  EXPECT_GT(refused, 0);
  clients.clear();
  EXPECT_EQ(server.post(kChatPath, chat_body()).status, 200);
}

TEST(HttpBadInput, TooManyHeaders) {
  FakeBackend backend;
  RunningServer server(&backend);
  for (const int count : {200, 10000}) {
    std::string headers;
    for (int i = 0; i < count; ++i)
      headers += "X-" + std::to_string(i) + ": v\r\n";
    EXPECT_EQ(server.get("/health", headers).status, 431) << count;
  }
  EXPECT_EQ(server.get("/health", "X-Long: " + std::string(100000, 'h') + "\r\n").status, 431);
  EXPECT_EQ(server.get("/health").status, 200);
}

TEST(HttpBadInput, HeaderThatNeverEnds) {
  FakeBackend backend;
  RunningServer server(&backend);
  RawClient client(server.port());
  client.send("GET /health HTTP/1.1\r\nX-Endless: ");
  const std::string piece(4096, 'x');
  for (int i = 0; i < 1000; ++i)
    if (!client.send(piece)) break;
  EXPECT_EQ(client.read_reply()->status, 431);
}

TEST(HttpBadInput, SlowHeaderTimesOut) {
  FakeBackend backend;
  ServerOptions options;
  options.header_timeout = milliseconds(200);
  options.idle_timeout = milliseconds(300);
  RunningServer server(&backend, options);
  RawClient slow(server.port());
  slow.send("GET /health HTTP/1.1\r\nX-Slow:");
  EXPECT_EQ(slow.read_reply()->status, 408);
  RawClient slow_body(server.port());
  slow_body.send("POST /v1/completions HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc");
  EXPECT_EQ(slow_body.read_reply()->status, 408);
  RawClient expecting(server.port());
  expecting.send(
      "POST /v1/completions HTTP/1.1\r\nContent-Length: 10\r\nExpect: 100-continue\r\n\r\n");
  EXPECT_EQ(expecting.read_reply()->status, 408);
  RawClient idle(server.port());
  EXPECT_TRUE(idle.read_end());  // without a word
}

TEST(HttpInfo, TheServedModelIsDescribedAndItsSamplingIsTheDefault) {
  FakeBackend backend;
  ServerOptions options;
  options.model = {"llama", 135'000'000, "BF16", "Q8_0", 8192, {}};
  options.model.default_sampling.top_p = 0.9F;
  options.model.default_sampling.top_k = 20;
  RunningServer server(&backend, options);
  const json models = json::parse(server.get("/v1/models").body);
  EXPECT_EQ(models["data"][0]["family"], "llama");
  EXPECT_EQ(models["data"][0]["num_parameters"], 135'000'000);
  EXPECT_EQ(models["data"][0]["dtype"], "BF16");
  EXPECT_EQ(models["data"][0]["quantization"], "Q8_0");
  EXPECT_EQ(models["data"][0]["context_length"], 8192);
  EXPECT_EQ(models["data"][0]["default_sampling_params"].dump(),
            R"({"min_p":0.0,"repetition_penalty":1.0,"temperature":1.0,"top_k":20,"top_p":0.9})");
  EXPECT_EQ(server.post("/v1/completions", R"({"prompt": "a", "top_p": 1})").status, 200);
  EXPECT_EQ(backend.wait_for_request(1).sampling.top_k, 20);
  EXPECT_EQ(backend.wait_for_request(1).sampling.top_p, 1.0F);
}

TEST(HttpInfo, ModelsVersionPoolAndTokens) {
  FakeBackend backend;
  RunningServer server(&backend);
  const json models = json::parse(server.get("/v1/models").body);
  EXPECT_EQ(models["object"], "list");
  ASSERT_EQ(models["data"].size(), 2U);
  EXPECT_EQ(models["data"][0]["id"], "fake-model");
  EXPECT_EQ(models["data"][1]["object"], "model");
  EXPECT_EQ(models["data"][0]["owned_by"], "thaw");
  EXPECT_EQ(models["data"][0]["max_model_len"], 1024);
  EXPECT_EQ(json::parse(server.get("/v1/models/alias").body)["id"], "alias");
  EXPECT_EQ(json::parse(server.get("/v1/models/fake%2Dmodel").body)["id"], "fake-model");
  EXPECT_EQ(server.get("/v1/models/other").status, 404);
  EXPECT_EQ(json::parse(server.get("/admin/pool").body)["workers"].size(), 1U);
  EXPECT_EQ(json::parse(server.get("/v1/forks/recent").body)["windows"].size(), 0U);

  const json tokens =
      json::parse(server.post("/tokenize", R"({"prompt": "ab", "return_token_strs": true})").body);
  EXPECT_EQ(tokens["tokens"], json::array({256, 97, 98}));
  EXPECT_EQ(tokens["count"], 3);
  EXPECT_EQ(tokens["max_model_len"], 1024);
  EXPECT_EQ(tokens["token_strs"], json::array({"<bos>", "a", "b"}));
  const json plain = json::parse(
      server.post("/tokenize", R"({"prompt": "ab", "add_special_tokens": false})").body);
  EXPECT_EQ(plain["tokens"], json::array({97, 98}));
  const json chat = json::parse(server.post("/tokenize", chat_body()).body);
  EXPECT_EQ(chat["count"], 19);
  const json text = json::parse(server.post("/detokenize", R"({"tokens": [104, 105]})").body);
  EXPECT_EQ(text["prompt"], "hi");
}

TEST(HttpInfo, MetricsCountWhatHappened) {
  FakeBackend backend;
  RunningServer server(&backend);
  server.post(kChatPath, chat_body());
  server.post(kChatPath, "{");
  const std::string text = server.get("/metrics").body;
  for (const char* line : {
           "thaw_requests_total{endpoint=\"/v1/chat/completions\",code=\"200\"} 1\n",
           "thaw_requests_total{endpoint=\"/v1/chat/completions\",code=\"400\"} 1\n",
           "thaw_time_to_first_token_seconds_count 1\n",
           "thaw_request_duration_seconds_count 2\n",
           "thaw_tokens_prefilled_total{worker=\"0\"} 0\n",
           "thaw_ready 1\n",
           "thaw_requests_in_flight 0\n",
       })
    EXPECT_NE(text.find(line), std::string::npos) << line << text;
}

/// What is answered to a page of that origin, and to the OPTIONS ahead of it.
std::pair<ClientReply, ClientReply> ask_from(const RunningServer& server, const std::string& origin,
                                             const std::string& more = "") {
  const std::string header = "Origin: " + origin + "\r\n" + more;
  RawClient page(server.port());
  page.send(post_bytes(kChatPath, chat_body(), header + "Content-Type: text/plain\r\n"));
  RawClient ahead(server.port());
  ahead.send("OPTIONS " + std::string(kChatPath) + " HTTP/1.1\r\nHost: x\r\n" + header +
             "Access-Control-Request-Method: POST\r\n"
             "Access-Control-Request-Headers: authorization,x-stainless-os\r\n\r\n");
  return {page.read_reply().value(), ahead.read_reply().value()};
}

constexpr const char* kAllowed = "access-control-allow-origin";

TEST(HttpOrigins, PagesOfThisMachineMayAsk) {
  FakeBackend backend;
  RunningServer server(&backend);
  for (const char* origin : {"http://localhost:3000", "https://127.0.0.1", "http://[::1]:8080",
                             "vscode-webview://abc", "app://obsidian.md"}) {
    const auto [answer, ahead] = ask_from(server, origin);
    EXPECT_EQ(answer.status, 200) << origin;
    EXPECT_EQ(answer.headers.at(kAllowed), origin);
    EXPECT_EQ(answer.headers.at("vary"), "Origin");
    EXPECT_EQ(ahead.status, 200) << origin;
    EXPECT_EQ(ahead.headers.at(kAllowed), origin);
    EXPECT_EQ(ahead.headers.at("access-control-allow-headers"), "authorization,x-stainless-os");
  }
  RawClient stream(server.port());
  stream.send(
      post_bytes(kChatPath, chat_body(R"("stream": true)"), "Origin: http://localhost\r\n"));
  EXPECT_EQ(stream.read_reply()->headers.at(kAllowed), "http://localhost");
}

TEST(HttpOrigins, OthersMayOnlyWhereTheyAreAllowed) {
  FakeBackend backend;
  RunningServer server(&backend);
  for (const char* origin : {"https://evil.example", "http://localhost.evil.example", "null",
                             "http://127.0.0.1.evil.example:80"}) {
    const auto [answer, ahead] = ask_from(server, origin);
    EXPECT_EQ(answer.status, 403) << origin;
    EXPECT_NE(answer.body.find("--allow-origin"), std::string::npos) << answer.body;
    EXPECT_EQ(ahead.status, 403);
    EXPECT_FALSE(answer.headers.contains(kAllowed));
    EXPECT_FALSE(ahead.headers.contains(kAllowed));
  }
  EXPECT_EQ(backend.num_plans(), 0U);
  ServerOptions options;
  options.allowed_origins = {"https://chat.example"};
  RunningServer open(&backend, options);
  EXPECT_EQ(ask_from(open, "https://chat.example").first.headers.at(kAllowed),
            "https://chat.example");
  EXPECT_EQ(ask_from(open, "https://evil.example").first.status, 403);
  options.allowed_origins = {"*"};
  RunningServer wide(&backend, options);
  EXPECT_EQ(ask_from(wide, "https://evil.example").first.headers.at(kAllowed),
            "https://evil.example");
}

TEST(HttpOrigins, WhereKeysAreNeededTheKeyDecides) {
  FakeBackend backend;
  ServerOptions options;
  options.api_keys = {{"secret", "team"}};
  RunningServer server(&backend, options);
  const auto [answer, ahead] =
      ask_from(server, "https://any.example", "Authorization: Bearer secret\r\n");
  EXPECT_EQ(answer.status, 200);
  EXPECT_FALSE(answer.headers.contains(kAllowed)) << "the browser keeps it from the page";
  EXPECT_EQ(ahead.status, 405);
  EXPECT_EQ(ask_from(server, "https://any.example").first.status, 401);
}

}  // namespace
}  // namespace thaw::coalescer
