#include "tests/cuda/rank_test.h"

#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>

extern char** environ;  // NOLINT: POSIX's own name

namespace thaw::cuda {
namespace {

constexpr char kRankVariable[] = "THAW_TEST_RANK";  // rank, size and socket of a child

// One byte, and up to eight descriptors.
void send_to(int socket, std::span<const int> descriptors) {
  char byte = 'r';
  iovec data{&byte, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(8 * sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  if (!descriptors.empty()) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(descriptors.size_bytes());
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(descriptors.size_bytes());
    std::memcpy(CMSG_DATA(header), descriptors.data(), descriptors.size_bytes());
  }
  if (::sendmsg(socket, &message, MSG_NOSIGNAL) != 1)
    throw std::runtime_error("a rank is gone: nothing can be sent to it");
}

std::vector<UniqueFd> receive(int socket) {
  char byte = 0;
  iovec data{&byte, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(8 * sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  if (::recvmsg(socket, &message, MSG_CMSG_CLOEXEC) != 1)
    throw std::runtime_error("a rank is gone, or silent for a minute");
  std::vector<UniqueFd> descriptors;
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
       header = CMSG_NXTHDR(&message, header)) {
    const std::size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof fd);
      descriptors.emplace_back(fd);
    }
  }
  return descriptors;
}

void limit_waits(int socket) {
  const timeval minute{60, 0};
  ::setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &minute, sizeof minute);
}

}  // namespace

void RankTest::start(int size) {
  if (const char* child = std::getenv(kRankVariable)) {
    int socket = -1;
    if (std::sscanf(child, "%d:%d:%d", &rank_, &size_, &socket) != 3 || size_ != size)
      throw std::runtime_error("a rank was told " + std::string(child));
    peers_.push_back({-1, UniqueFd(socket)});
    limit_waits(socket);
    return;
  }
  size_ = size;
  const testing::TestInfo* info = testing::UnitTest::GetInstance()->current_test_info();
  std::string filter =
      std::string("--gtest_filter=") + info->test_suite_name() + "." + info->name();
  for (int rank = 1; rank < size; ++rank) {
    int sockets[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) != 0)
      throw std::runtime_error("socketpair");
    Peer peer{-1, UniqueFd(sockets[0])};
    UniqueFd inherited(::dup(sockets[1]));  // without close-on-exec
    ::close(sockets[1]);
    limit_waits(peer.socket.get());
    std::string variable = std::string(kRankVariable) + "=" + std::to_string(rank) + ":" +
                           std::to_string(size) + ":" + std::to_string(inherited.get());
    std::vector<char*> environment = {variable.data()};
    for (char** entry = environ; *entry != nullptr; ++entry)
      environment.push_back(*entry);
    environment.push_back(nullptr);
    char name[] = "rank";
    char* arguments[] = {name, filter.data(), nullptr};
    if (::posix_spawn(&peer.pid, "/proc/self/exe", nullptr, nullptr, arguments,
                      environment.data()) != 0)
      throw std::runtime_error("a rank cannot be started");
    peers_.push_back(std::move(peer));
  }
}

std::vector<UniqueFd> RankTest::share(const UniqueFd& own) {
  const int number = own.get();
  if (rank_ != 0) {
    send_to(peers_[0].socket.get(), std::span(&number, 1));
    return receive(peers_[0].socket.get());
  }
  std::vector<UniqueFd> all;
  all.emplace_back(::dup(number));
  for (const Peer& peer : peers_)
    all.push_back(std::move(receive(peer.socket.get()).at(0)));
  std::vector<int> numbers;
  for (const UniqueFd& fd : all)
    numbers.push_back(fd.get());
  for (const Peer& peer : peers_)
    send_to(peer.socket.get(), numbers);
  return all;
}

void RankTest::meet() {
  if (rank_ != 0) {
    send_to(peers_[0].socket.get(), {});
    receive(peers_[0].socket.get());
    return;
  }
  for (const Peer& peer : peers_)
    receive(peer.socket.get());
  for (const Peer& peer : peers_)
    send_to(peer.socket.get(), {});
}

void RankTest::await_end(int rank) {
  Peer& peer = peers_.at(static_cast<std::size_t>(rank) - 1);
  int status = 0;
  ASSERT_EQ(::waitpid(peer.pid, &status, 0), peer.pid);
  peer.pid = -1;
}

void RankTest::TearDown() {
  for (Peer& peer : peers_) {
    if (peer.pid < 0) continue;
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes(1);
    int status = 0;
    pid_t ended = 0;
    while ((ended = ::waitpid(peer.pid, &status, WNOHANG)) == 0 &&
           std::chrono::steady_clock::now() < deadline)
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    EXPECT_EQ(ended, peer.pid) << "a rank has not ended";
    if (ended != peer.pid) continue;
    peer.pid = -1;
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0)
        << "a rank failed, status " << status;
  }
}

RankTest::~RankTest() {
  for (const Peer& peer : peers_) {
    if (peer.pid < 0) continue;
    ::kill(peer.pid, SIGKILL);
    ::waitpid(peer.pid, nullptr, 0);
  }
}

}  // namespace thaw::cuda
