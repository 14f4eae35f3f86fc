// Many clients, slow clients, clients that leave, and the server's end.

#include <atomic>
#include <latch>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "coalescer/core/window.h"
#include "tests/coalescer/http_client.h"

namespace thaw::coalescer {
namespace {

using nlohmann::json;
using std::chrono::milliseconds;

TEST(HttpServing, ClientThatHangsUpCancelsItsRequest) {
  for (const bool stream : {false, true}) {
    FakeBackend backend(/*automatic=*/false);
    RunningServer server(&backend);
    RequestId id = 0;
    {
      RawClient client(server.port());
      client.send(post_bytes(kChatPath, chat_body(stream ? R"("stream": true)" : "")));
      id = backend.wait_for_request(1).id;
      backend.emit(AdmittedEvent{id, 0});
      backend.emit_text(id, "abc");
      if (stream) {
        EXPECT_TRUE(client.read_until(R"("content":"c")"));
      }
    }
    EXPECT_TRUE(backend.wait_for_cancel(id));
    backend.emit(CompletedEvent{id, Usage{}});
    // The events that still come concern nobody; the server goes on.
    EXPECT_EQ(server.get("/health").status, 200);
    EXPECT_EQ(metric(server, "thaw_client_disconnects_total"), 1);
    EXPECT_EQ(metric(server, "thaw_requests_in_flight"), 0);
  }
}

TEST(HttpServing, HangUpIsSeenBehindAPipelinedRequest) {
  FakeBackend backend(/*automatic=*/false);
  RunningServer server(&backend);
  RequestId id = 0;
  {
    RawClient client(server.port());
    client.send(post_bytes(kChatPath, chat_body()));
    id = backend.wait_for_request(1).id;
    client.send(get_bytes("/health"));
  }
  EXPECT_TRUE(backend.wait_for_cancel(id));
}

TEST(HttpServing, HangUpOfOneOfManyCancelsOnlyThat) {
  FakeBackend backend(/*automatic=*/false);
  RunningServer server(&backend);
  RawClient stays(server.port());
  stays.send(post_bytes(kChatPath, chat_body()));
  const RequestId kept = backend.wait_for_request(1).id;
  RequestId left = 0;
  {
    RawClient leaves(server.port());
    leaves.send(post_bytes(kChatPath, chat_body()));
    left = backend.wait_for_request(2).id;
  }
  EXPECT_TRUE(backend.wait_for_cancel(left));
  backend.emit_text(kept, "ok");
  backend.emit_end(kept);
  EXPECT_EQ(stays.read_reply()->status, 200);
  EXPECT_EQ(backend.cancelled(), std::vector<RequestId>{left});
}

TEST(HttpServing, SixtyFourStreamsAtOnce) {
  FakeBackend backend;
  backend.reply = std::string(200, 'r');
  RunningServer server(&backend);
  std::atomic<int> good{0};
  std::vector<std::thread> clients;
  for (int i = 0; i < 64; ++i) {
    clients.emplace_back([&] {
      RawClient client(server.port());
      for (int round = 0; round < 3; ++round) {
        client.send(post_bytes(kChatPath, chat_body(R"("stream": true)")));
        const auto reply = client.read_reply();
        // One role chunk, 200 deltas, one end, [DONE].
        if (reply && reply->status == 200 && sse_data(reply->body).size() == 203) ++good;
      }
    });
  }
  for (std::thread& client : clients)
    client.join();
  EXPECT_EQ(good, 64 * 3);
}

TEST(HttpServing, SlowReaderSlowsNobodyAndIsDropped) {
  FakeBackend backend(/*automatic=*/false);
  ServerOptions options;
  options.max_model_len = 1U << 20;
  options.write_timeout = milliseconds(500);
  RunningServer server(&backend, options);
  RawClient slow(server.port(), /*receive_buffer_bytes=*/4096);
  slow.send(post_bytes(kChatPath, chat_body(R"("stream": true)")));
  const RequestId slow_id = backend.wait_for_request(1).id;
  backend.emit(AdmittedEvent{slow_id, 0});
  // Far more than the socket buffers hold, and nobody reads it.
  backend.emit_text(slow_id, std::string(100000, 's'));

  RawClient quick(server.port());
  quick.send(post_bytes(kChatPath, chat_body(R"("stream": true)")));
  const RequestId quick_id = backend.wait_for_request(2).id;
  backend.emit(AdmittedEvent{quick_id, 0});
  backend.emit_text(quick_id, "q");
  EXPECT_TRUE(quick.read_until(R"("content":"q")"));
  backend.emit_end(quick_id);
  EXPECT_TRUE(quick.read_until("[DONE]"));

  EXPECT_TRUE(backend.wait_for_cancel(slow_id));
  EXPECT_EQ(backend.cancelled(), std::vector<RequestId>{slow_id});
}

TEST(HttpServing, RequestsOfOneWindowBecomeOnePlan) {
  FakeBackend backend(/*automatic=*/false);
  ServerOptions options;
  options.window = std::chrono::microseconds(300000);
  RunningServer server(&backend, options);
  std::vector<std::unique_ptr<RawClient>> clients;
  for (int i = 0; i < 5; ++i) {
    clients.push_back(std::make_unique<RawClient>(server.port()));
    clients.back()->send(post_bytes(kChatPath, chat_body()));
    if (i == 0) backend.wait_for_request(1);  // alone on an idle pool: sent at once
  }
  backend.wait_for_request(5);
  const std::vector<ForkPlan> plans = backend.plans();
  ASSERT_GE(plans.size(), 2U);
  EXPECT_EQ(plans[0].requests.size(), 1U);
  EXPECT_GE(plans[1].requests.size(), 2U);
  ASSERT_EQ(plans[1].trunks.size(), 1U);
  EXPECT_EQ(plans[1].trunks[0].num_requests, plans[1].requests.size());
}

TEST(HttpServing, LongPromptsOnSeveralTextThreadsAreEachTheirClients) {
  FakeBackend backend(/*automatic=*/false);
  ServerOptions options;
  options.max_model_len = 1U << 20;
  options.num_text_threads = 4;
  RunningServer server(&backend, options);
  const auto prompt = [](std::size_t client) {
    std::string words;
    for (int i = 0; i < 4000; ++i)
      words += "word" + std::to_string(i) + " ";
    return words + "of client " + std::to_string(client);
  };
  constexpr std::size_t kClients = 12;
  std::vector<std::unique_ptr<RawClient>> clients;
  std::map<std::vector<TokenId>, int> wanted;
  for (std::size_t i = 0; i < kClients; ++i) {
    const json body{{"prompt", prompt(i)}, {"max_tokens", 1}};
    clients.push_back(std::make_unique<RawClient>(server.port()));
    clients.back()->send(post_bytes("/v1/completions", body.dump()));
    ++wanted[ByteCodec().encode_text(prompt(i), /*add_special=*/true)];
  }
  std::map<std::vector<TokenId>, int> found;
  for (std::size_t i = 1; i <= kClients; ++i)
    ++found[backend.wait_for_request(i).prompt];
  EXPECT_EQ(found, wanted);
}

/// Texts of more than 4,000 bytes wait for release().
class HeldCodec final : public ByteCodec {
 public:
  std::vector<TokenId> encode_text(std::string_view text, bool add_special) const override {
    if (text.size() > 4000) {
      if (!begun_.try_wait()) begun_.count_down();
      released_.wait();
    }
    return ByteCodec::encode_text(text, add_special);
  }
  void await_begin() const { begun_.wait(); }
  void release() const { released_.count_down(); }

 private:
  mutable std::latch begun_{1};
  mutable std::latch released_{1};
};

TEST(HttpServing, AnIdlePoolsWindowWaitsForWhatIsBeingTokenizedButNotForEver) {
  FakeBackend backend(/*automatic=*/false);
  const auto codec = std::make_shared<const HeldCodec>();
  ServedModel model;
  model.names = {"fake-model"};
  model.codec = codec;
  model.max_model_len = 1U << 20;
  const auto models = std::make_shared<ServedModels>();
  ASSERT_TRUE(models->add(std::move(model)));
  ServerOptions options;
  options.window = std::chrono::milliseconds(1);
  RunningServer server(&backend, models, options);
  RawClient held(server.port());
  held.send(post_bytes("/v1/completions", json{{"prompt", std::string(5000, 'a')}}.dump()));
  codec->await_begin();

  const auto sent = std::chrono::steady_clock::now();
  RawClient other(server.port());
  other.send(post_bytes("/v1/completions", R"({"prompt": "b"})"));
  EXPECT_EQ(backend.wait_for_request(1).prompt.back(), 'b');
  EXPECT_GE(std::chrono::steady_clock::now() - sent, options.window + Window::kMostExtension);
  codec->release();
  EXPECT_GE(backend.wait_for_request(2).prompt.size(), 5000U);
}

TEST(HttpServing, HangUpInTheWindowIsNeverSubmitted) {
  FakeBackend backend(/*automatic=*/false);
  ServerOptions options;
  options.window = std::chrono::microseconds(500000);
  RunningServer server(&backend, options);
  RawClient first(server.port());
  first.send(post_bytes(kChatPath, chat_body()));
  backend.wait_for_request(1);
  {
    RawClient leaves(server.port());
    leaves.send(post_bytes(kChatPath, chat_body(R"("seed": 1)")));
  }
  RawClient third(server.port());
  third.send(post_bytes(kChatPath, chat_body(R"("seed": 2)")));
  EXPECT_EQ(backend.wait_for_request(2).sampling.seed, 2U);
}

TEST(HttpServing, FullQueueIsTooManyRequests) {
  FakeBackend backend(/*automatic=*/false);
  ServerOptions options;
  options.max_queued_requests = 1;
  RunningServer server(&backend, options);
  RawClient first(server.port());
  first.send(post_bytes(kChatPath, chat_body()));
  const RequestId id = backend.wait_for_request(1).id;
  const ClientReply refused = server.post(kChatPath, chat_body());
  EXPECT_EQ(refused.status, 429);
  EXPECT_EQ(json::parse(refused.body)["error"]["code"], "rate_limit_exceeded");
  EXPECT_GT(std::stoi(refused.headers.at("retry-after-ms")), 0);
  EXPECT_GT(std::stoi(refused.headers.at("retry-after")), 0);
  backend.emit_text(id, "x");  // it runs: the queue is empty again
  RawClient second(server.port());
  EXPECT_TRUE(first.send(""));
  second.send(post_bytes(kChatPath, chat_body()));
  backend.wait_for_request(2);
}

TEST(HttpServing, LoadingIsUnavailable) {
  FakeBackend backend;
  RunningServer server(&backend);
  backend.set_status(PoolStatus{});
  const ClientReply health = server.get("/health");
  EXPECT_EQ(health.status, 503);
  EXPECT_EQ(json::parse(health.body)["status"], "loading");
  const ClientReply chat = server.post(kChatPath, chat_body());
  EXPECT_EQ(chat.status, 503);
  EXPECT_EQ(chat.headers.count("retry-after-ms"), 1U);
  PoolStatus ready;
  ready.ready = true;
  backend.set_status(ready);
  EXPECT_EQ(server.get("/health").status, 200);
  EXPECT_EQ(server.post(kChatPath, chat_body()).status, 200);
}

TEST(HttpServing, WhatKeepsTheModelFromLoadingIsTold) {
  FakeBackend backend;
  RunningServer server(&backend);
  PoolStatus status;
  status.failure = "no worker starts; the last one said: 3 bytes are free";
  backend.set_status(status);
  const ClientReply chat = server.post(kChatPath, chat_body());
  EXPECT_EQ(chat.status, 503);
  EXPECT_EQ(json::parse(chat.body)["error"]["message"], status.failure);
  EXPECT_EQ(server.get("/health").status, 503);
  status.failure.clear();  // a later attempt may do better
  backend.set_status(status);
  const ClientReply loading = server.post(kChatPath, chat_body());
  EXPECT_EQ(loading.status, 503);
  EXPECT_EQ(json::parse(loading.body)["error"]["message"], "the model is still loading");
  status.ready = true;
  backend.set_status(status);
  EXPECT_EQ(server.post(kChatPath, chat_body()).status, 200);
}

TEST(HttpServing, DrainLetsStreamsFinish) {
  FakeBackend backend(/*automatic=*/false);
  RunningServer server(&backend);
  RawClient idle(server.port());
  idle.send(get_bytes("/health"));
  EXPECT_EQ(idle.read_reply()->status, 200);
  RawClient client(server.port());
  client.send(post_bytes(kChatPath, chat_body(R"("stream": true)")));
  const RequestId id = backend.wait_for_request(1).id;
  backend.emit(AdmittedEvent{id, 0});
  backend.emit_text(id, "a");
  EXPECT_TRUE(client.read_until(R"("content":"a")"));
  server.server().stop(std::chrono::seconds(30));
  EXPECT_TRUE(idle.read_end());  // closed at once
  EXPECT_THROW(RawClient late(server.port()), std::runtime_error);
  backend.emit_text(id, "b");
  backend.emit_end(id);
  EXPECT_TRUE(client.read_until(R"("content":"b")"));
  EXPECT_TRUE(client.read_until("[DONE]"));
  EXPECT_TRUE(client.read_end());
  server.stop_and_join(std::chrono::seconds(30));
}

TEST(HttpServing, DrainDeadlineCutsStreamsWithAnError) {
  FakeBackend backend(/*automatic=*/false);
  RunningServer server(&backend);
  RawClient stream(server.port());
  stream.send(post_bytes(kChatPath, chat_body(R"("stream": true)")));
  const RequestId id = backend.wait_for_request(1).id;
  backend.emit(AdmittedEvent{id, 0});
  RawClient whole(server.port());
  whole.send(post_bytes(kChatPath, chat_body()));
  const RequestId other = backend.wait_for_request(2).id;
  EXPECT_TRUE(stream.read_until("assistant"));
  server.stop_and_join(milliseconds(50));
  EXPECT_TRUE(stream.read_until(R"({"error":)"));
  EXPECT_EQ(whole.read_reply()->status, 503);
  EXPECT_TRUE(backend.wait_for_cancel(id));
  EXPECT_TRUE(backend.wait_for_cancel(other));
}

TEST(HttpServing, ServerEndsWhileEventsStillArrive) {
  FakeBackend backend(/*automatic=*/false);
  RequestId id = 0;
  {
    RunningServer server(&backend);
    RawClient client(server.port());
    client.send(post_bytes(kChatPath, chat_body()));
    id = backend.wait_for_request(1).id;
  }
  backend.emit_text(id, "nobody listens");
  backend.emit(CompletedEvent{id, Usage{}});
}

TEST(HttpServing, ConnectionLimitAnswersAndCloses) {
  FakeBackend backend;
  ServerOptions options;
  options.max_connections = 1;
  RunningServer server(&backend, options);
  RawClient first(server.port());
  first.send(get_bytes("/health"));
  EXPECT_EQ(first.read_reply()->status, 200);
  RawClient second(server.port());
  EXPECT_EQ(second.read_reply()->status, 503);
  EXPECT_TRUE(second.read_end());
  first.send(get_bytes("/health"));
  EXPECT_EQ(first.read_reply()->status, 200);
}

}  // namespace
}  // namespace thaw::coalescer
