// A server inside of a process that is not ours.

#include "cli/embedded_host.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

namespace thaw::cli {
namespace {

using std::chrono::milliseconds;

const std::string kBuild = THAW_BINARY_DIR;

ServeSettings small_settings() {
  ServeSettings settings;
  settings.model = kBuild + "/testdata/tiny-q4_1.gguf";
  settings.kv_bytes = 16U << 20;
  settings.arena_bytes = 1U << 20;
  settings.threads = 1;
  settings.image_cache_bytes = 0;
  settings.log_level = "warn";
  return settings;
}

Result<std::unique_ptr<EmbeddedHost>> start(ServeSettings settings = small_settings()) {
  return EmbeddedHost::start(std::move(settings), ModelPaths{}, kBuild + "/bin/thaw");
}

/// The status line of an answer.
std::string ask(int fd, const std::string& path) {
  const std::string request = "GET " + path + " HTTP/1.1\r\nhost: x\r\n\r\n";
  if (::send(fd, request.data(), request.size(), MSG_NOSIGNAL) < 0) return "";
  const timeval patience{10, 0};
  ::setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
  std::string answer(4096, '\0');
  const ssize_t count = ::recv(fd, answer.data(), answer.size(), 0);
  answer.resize(count < 0 ? 0 : static_cast<std::size_t>(count));
  return answer.substr(0, answer.find('\r'));
}

std::set<std::string> entries(const char* directory) {
  std::set<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(directory))
    names.insert(entry.path().filename());
  return names;
}

/// A thread that was joined may be listed for a moment longer.
bool threads_come_down_to(std::size_t count) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (entries("/proc/self/task").size() > count) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::yield();
  }
  return true;
}

TEST(EmbeddedHost, ServesWhoeverConnects) {
  auto host = start();
  ASSERT_TRUE(host) << host.error().message;
  EXPECT_EQ((*host)->model_name(), "tiny-q4_1");
  const UniqueFd one = (*host)->connect().value();
  const UniqueFd other = (*host)->connect().value();
  EXPECT_EQ(ask(one.get(), "/health"), "HTTP/1.1 200 OK");
  EXPECT_EQ(ask(other.get(), "/v1/models"), "HTTP/1.1 200 OK");
}

TEST(EmbeddedHost, NeedsNoKey) {
  ServeSettings settings = small_settings();
  settings.api_keys = {"secret"};
  auto host = start(std::move(settings));
  ASSERT_TRUE(host) << host.error().message;
  const UniqueFd fd = (*host)->connect().value();
  EXPECT_EQ(ask(fd.get(), "/v1/models"), "HTTP/1.1 200 OK");
}

TEST(EmbeddedHost, SaysWhyItCannotStart) {
  ServeSettings settings = small_settings();
  settings.model = "/nowhere/model.gguf";
  auto missing = start(std::move(settings));
  ASSERT_FALSE(missing);
  EXPECT_NE(missing.error().message.find("/nowhere/model.gguf"), std::string::npos);
  const auto binary = EmbeddedHost::start(small_settings(), ModelPaths{}, "/nowhere/thaw");
  ASSERT_FALSE(binary);
  EXPECT_NE(binary.error().message.find("/nowhere/thaw"), std::string::npos);
}

TEST(EmbeddedHost, LeavesNothing) {
  const auto descriptors = entries("/proc/self/fd");
  const auto threads = entries("/proc/self/task").size();
  for (int round = 0; round < 2; ++round) {
    auto host = start();
    ASSERT_TRUE(host) << host.error().message;
    EXPECT_EQ(entries("/proc/self/fd").size(), descriptors.size() + 1);
    (*host)->close(milliseconds{0});
    (*host)->close(milliseconds{0});
    const auto closed = (*host)->connect();
    ASSERT_FALSE(closed);
    EXPECT_EQ(closed.error().code, Errc::kUnavailable);
  }
  EXPECT_EQ(entries("/proc/self/fd"), descriptors);
  EXPECT_TRUE(threads_come_down_to(threads));
}

TEST(EmbeddedHost, LetsRequestsFinish) {
  auto host = start();
  ASSERT_TRUE(host) << host.error().message;
  const UniqueFd fd = (*host)->connect().value();
  const std::string body = R"({"prompt": "a", "max_tokens": 40, "ignore_eos": true})";
  const std::string request =
      "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: " + std::to_string(body.size()) +
      "\r\n\r\n" + body;
  ASSERT_GT(::send(fd.get(), request.data(), request.size(), MSG_NOSIGNAL), 0);
  // Once it is counted it runs.
  const UniqueFd watcher = (*host)->connect().value();
  EXPECT_EQ(ask(watcher.get(), "/health"), "HTTP/1.1 200 OK");
  (*host)->close(milliseconds{30000});
  std::string answer(1 << 16, '\0');
  const ssize_t count = ::recv(fd.get(), answer.data(), answer.size(), 0);
  ASSERT_GT(count, 0);
  EXPECT_TRUE(answer.starts_with("HTTP/1.1 200 OK")) << answer;
}

// What a descriptor closed here stands for ends, though the host started while it was open.
TEST(EmbeddedHost, HoldsNoDescriptorOfTheProcess) {
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const UniqueFd reading(ends[0]);
  UniqueFd writing(ends[1]);
  auto host = start();
  ASSERT_TRUE(host) << host.error().message;
  writing.reset();
  char byte = 0;
  EXPECT_EQ(::read(reading.get(), &byte, 1), 0);
}

TEST(EmbeddedHost, ForkedChildEndsNothing) {
  auto host = start();
  ASSERT_TRUE(host) << host.error().message;
  const pid_t child = ::fork();
  if (child == 0) {
    EmbeddedHost::abandon(std::move(*host));
    ::_exit(0);
  }
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  const UniqueFd fd = (*host)->connect().value();
  EXPECT_EQ(ask(fd.get(), "/health"), "HTTP/1.1 200 OK");
}

TEST(EmbeddedHost, TakesNoSignalsOfTheProcess) {
  static volatile pthread_t taken_by;
  auto host = start();
  ASSERT_TRUE(host) << host.error().message;
  struct sigaction action {};
  action.sa_handler = [](int) { taken_by = ::pthread_self(); };
  struct sigaction before {};
  ::sigaction(SIGUSR2, &action, &before);
  ::kill(::getpid(), SIGUSR2);
  EXPECT_EQ(taken_by, ::pthread_self());
  ::sigaction(SIGUSR2, &before, nullptr);
}

TEST(EmbeddedHost, ConnectsThoughTheProcessHandlesSignals) {
  auto host = start();
  ASSERT_TRUE(host) << host.error().message;
  struct sigaction action {};
  action.sa_handler = [](int) {};  // and no SA_RESTART, as a profiler's
  struct sigaction before {};
  ::sigaction(SIGALRM, &action, &before);
  const itimerval often{{0, 50}, {0, 50}};
  ::setitimer(ITIMER_REAL, &often, nullptr);
  int failures = 0;
  for (int i = 0; i < 2000; ++i)
    failures += (*host)->connect() ? 0 : 1;
  const itimerval off{};
  ::setitimer(ITIMER_REAL, &off, nullptr);
  ::sigaction(SIGALRM, &before, nullptr);
  EXPECT_EQ(failures, 0);
}

TEST(EmbeddedHost, ConnectsFromManyThreads) {
  auto host = start();
  ASSERT_TRUE(host) << host.error().message;
  std::vector<std::jthread> threads;
  std::atomic<int> served = 0;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] {
      const UniqueFd fd = (*host)->connect().value();
      served += ask(fd.get(), "/health") == "HTTP/1.1 200 OK" ? 1 : 0;
    });
  }
  threads.clear();
  EXPECT_EQ(served, 8);
}

}  // namespace
}  // namespace thaw::cli
