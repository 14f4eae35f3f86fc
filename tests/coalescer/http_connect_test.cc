// Server::connect(): the same server without a port.

#include <fcntl.h>

#include <string>
#include <utility>

#include <gtest/gtest.h>

#include "tests/coalescer/http_client.h"

namespace thaw::coalescer {
namespace {

using std::chrono::milliseconds;

ServerOptions without_port() {
  ServerOptions options;
  options.listens = false;
  return options;
}

TEST(HttpConnect, AnswersRequestsOneAfterAnother) {
  FakeBackend backend;
  RunningServer server(&backend, without_port());
  EXPECT_EQ(server.port(), 0);
  RawClient client(server.server().connect().value());
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(client.send(post_bytes(kChatPath, chat_body())));
    const auto reply = client.read_reply();
    ASSERT_TRUE(reply);
    EXPECT_EQ(reply->status, 200);
    EXPECT_NE(reply->body.find("Hello, world."), std::string::npos);
  }
}

TEST(HttpConnect, ServesBesideItsPort) {
  FakeBackend backend;
  RunningServer server(&backend);
  RawClient client(server.server().connect().value());
  EXPECT_EQ(server.get("/health").status, 200);
  ASSERT_TRUE(client.send(get_bytes("/health")));
  EXPECT_EQ(client.read_reply().value().status, 200);
}

TEST(HttpConnect, DescriptorIsNotInherited) {
  FakeBackend backend;
  RunningServer server(&backend, without_port());
  const UniqueFd fd = server.server().connect().value();
  EXPECT_NE(::fcntl(fd.get(), F_GETFD) & FD_CLOEXEC, 0);
}

TEST(HttpConnect, HangUpCancelsTheRequest) {
  FakeBackend backend(/*automatic=*/false);
  RunningServer server(&backend, without_port());
  RequestId id = 0;
  {
    RawClient client(server.server().connect().value());
    client.send(post_bytes(kChatPath, chat_body(R"("stream": true)")));
    id = backend.wait_for_request(1).id;
    backend.emit(AdmittedEvent{id, 0});
    backend.emit_text(id, "abc");
    EXPECT_TRUE(client.read_until(R"("content":"c")"));
  }
  EXPECT_TRUE(backend.wait_for_cancel(id));
}

TEST(HttpConnect, CountsAsAConnection) {
  FakeBackend backend;
  ServerOptions options = without_port();
  options.max_connections = 1;
  RunningServer server(&backend, options);
  RawClient first(server.server().connect().value());
  ASSERT_TRUE(first.send(get_bytes("/health")));
  EXPECT_EQ(first.read_reply().value().status, 200);
  RawClient second(server.server().connect().value());
  EXPECT_EQ(second.read_reply().value().status, 503);
  EXPECT_TRUE(second.read_end());
}

TEST(HttpConnect, EndsWithTheServer) {
  FakeBackend backend;
  auto server = std::make_unique<RunningServer>(&backend, without_port());
  RawClient idle(server->server().connect().value());
  ASSERT_TRUE(idle.send(get_bytes("/health")));
  EXPECT_TRUE(idle.read_reply());
  server->stop_and_join(milliseconds{1000});
  EXPECT_TRUE(idle.read_end());
  RawClient late(server->server().connect().value());
  server.reset();
  EXPECT_TRUE(late.read_end());
}

}  // namespace
}  // namespace thaw::coalescer
