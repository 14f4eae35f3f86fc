#include "tests/forkpool/worker_harness.h"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <utility>

#include <gtest/gtest.h>

extern char** environ;

namespace thaw::forkpool::test {
namespace {

constexpr int kPatienceMs = 60000;

// A copy out of the way of the descriptors that the child is given.
UniqueFd high_copy(int fd) {
  return UniqueFd(fd < 0 ? -1 : ::fcntl(fd, F_DUPFD_CLOEXEC, 20));
}

}  // namespace

DrivenWorker::DrivenWorker(const Memory& memory, const InitFrame& init, const AdoptFrame& adopt) {
  spawn(memory);
  send(init);
  send(adopt);
}

DrivenWorker::DrivenWorker(const Memory& memory) {
  spawn(memory);
}

DrivenWorker::~DrivenWorker() {
  if (pid_ < 0) return;
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
}

void DrivenWorker::spawn(const Memory& memory) {
  std::array<int, 2> ends{};
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()), 0);
  channel_ = UniqueFd(ends[0]);
  const UniqueFd theirs(ends[1]);
  const std::array<std::pair<UniqueFd, int>, 4> inherited{{
      {high_copy(theirs.get()), kChannelFd},
      {high_copy(memory.weights), kWeightsFd},
      {high_copy(memory.kv_pool), kKvPoolFd},
      {high_copy(memory.arena), kArenaFd},
  }};
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  for (const auto& [source, target] : inherited) {
    if (source) {
      posix_spawn_file_actions_adddup2(&actions, source.get(), target);
    } else {
      posix_spawn_file_actions_addclose(&actions, target);
    }
  }
  std::array<char, 16> name{"worker_serve"};
  std::array<char, 16> mode{"--worker"};
  std::array<char*, 3> arguments{name.data(), mode.data(), nullptr};
  const int error =
      ::posix_spawn(&pid_, "/proc/self/exe", &actions, nullptr, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  ASSERT_EQ(error, 0);
}

void DrivenWorker::send(const Frame& frame) {
  FrameSender sender;
  sender.push(frame);
  while (sender.unsent_bytes() > 0) {
    pollfd polled{channel_.get(), POLLOUT, 0};
    ::poll(&polled, 1, kPatienceMs);
    if (sender.send_some(channel_.get()) != 0) return;  // it has died; receive() shows that
  }
}

void DrivenWorker::send_bytes(const std::string& bytes) {
  for (std::size_t sent = 0; sent < bytes.size();) {
    const ssize_t count =
        ::send(channel_.get(), bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return;  // it has died; receive() shows that
    sent += static_cast<std::size_t>(count);
  }
}

std::optional<Frame> DrivenWorker::receive() {
  while (true) {
    auto next = decoder_.next();
    if (!next) {
      ADD_FAILURE() << next.error().message;
      return std::nullopt;
    }
    if (next->found) {
      note(next->frame);
      return std::move(next->frame);
    }
    pollfd polled{channel_.get(), POLLIN, 0};
    if (::poll(&polled, 1, kPatienceMs) <= 0) {
      ADD_FAILURE() << "nothing came from the worker in " << kPatienceMs << " ms";
      return std::nullopt;
    }
    std::array<char, 65536> buffer;
    if (receive_some(channel_.get(), buffer, decoder_) <= 0) return std::nullopt;
  }
}

bool DrivenWorker::receive_until(const std::function<bool()>& done) {
  while (!done())
    if (!receive()) return false;
  return true;
}

void DrivenWorker::note(const Frame& frame) {
  if (const auto* stats = std::get_if<StatsFrame>(&frame)) stats_ = stats->stats;
  if (const auto* publish = std::get_if<PublishFrame>(&frame)) {
    for (const BlockEntry& entry : publish->blocks) {
      for (const BlockEntry& other : published_) {
        EXPECT_NE(other.block, entry.block) << "published again without an eviction";
        EXPECT_NE(other.hash, entry.hash) << "published twice";
      }
      published_.push_back(entry);
    }
  }
  if (const auto* evict = std::get_if<EvictFrame>(&frame)) {
    for (const Hash128& hash : evict->hashes) {
      EXPECT_EQ(std::erase_if(published_, [&](const BlockEntry& e) { return e.hash == hash; }), 1U)
          << "evicted a block that was not published";
    }
  }
  const auto* events = std::get_if<EventsFrame>(&frame);
  if (events == nullptr) return;
  for (const GenerateEvent& event : events->events) {
    Outcome& outcome = outcomes_[event_request(event)];
    EXPECT_FALSE(outcome.ended()) << "an event after the last one";
    if (const auto* token = std::get_if<TokenEvent>(&event)) {
      if (token->choice != 0) continue;
      EXPECT_EQ(token->index, outcome.first_index + outcome.tokens.size());
      outcome.tokens.push_back(token->token);
    } else if (const auto* finished = std::get_if<FinishedEvent>(&event)) {
      outcome.reason = finished->reason;
    } else if (const auto* completed = std::get_if<CompletedEvent>(&event)) {
      outcome.usage = completed->usage;
    } else if (const auto* failed = std::get_if<FailedEvent>(&event)) {
      outcome.error = failed->error;
    }
  }
}

Outcome DrivenWorker::run(GenerateRequest request) {
  const RequestId id = request.id;
  if (!request.resumed.empty()) outcomes_[id].first_index = request.resumed[0].generated.size();
  send(SubmitFrame{std::move(request)});
  EXPECT_TRUE(receive_until([&] { return outcomes_[id].ended(); }));
  return outcomes_[id];
}

void DrivenWorker::signal(int number) const {
  ASSERT_EQ(::kill(pid_, number), 0);
}

int DrivenWorker::kill() {
  ::kill(pid_, SIGKILL);
  int status = -1;
  ::waitpid(std::exchange(pid_, -1), &status, 0);
  while (receive()) {
  }
  return status;
}

int DrivenWorker::wait_exit() {
  const int process = static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0));
  const UniqueFd owner(process);
  pollfd polled{process, POLLIN, 0};
  EXPECT_EQ(::poll(&polled, 1, kPatienceMs), 1) << "the worker does not end";
  int status = -1;
  if (::waitpid(pid_, &status, WNOHANG) == pid_) pid_ = -1;
  return status;
}

AdoptFrame DrivenWorker::ledger() const {
  return AdoptFrame{published_};
}

}  // namespace thaw::forkpool::test
