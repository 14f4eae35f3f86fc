#include "forkpool/worker/rank_watch.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <utility>

#include "engine/base/log.h"

namespace thaw::forkpool::worker {
namespace {

/// The follower at the other end has sent something that was not read: an error, at its end.
bool has_said_why(int socket) {
  char byte = 0;
  return ::recv(socket, &byte, 1, MSG_PEEK | MSG_DONTWAIT) > 0;
}

}  // namespace

RankWatch::RankWatch(std::vector<int> sockets, std::function<void()> before_end)
    : sockets_(std::move(sockets)),
      before_end_(std::move(before_end)),
      wake_(::eventfd(0, EFD_CLOEXEC)),
      thread_([this] { run(); }) {}

RankWatch::~RankWatch() {
  const std::uint64_t one = 1;
  if (::write(wake_.get(), &one, sizeof one) < 0) logger("worker")->error("event=watch_not_woken");
}

void RankWatch::run() const {
  std::vector<pollfd> polled;
  polled.reserve(sockets_.size() + 1);
  for (const int socket : sockets_)
    polled.push_back({socket, POLLIN | POLLRDHUP, 0});
  polled.push_back({wake_.get(), POLLIN, 0});
  constexpr int kLookMs = 10000;  // an end wakes us
  while (::poll(polled.data(), polled.size(), kLookMs) <= 0) {
  }
  if (polled.back().revents != 0) return;
  bool was_said_why = false;
  for (std::size_t i = 0; i + 1 < polled.size(); ++i) {
    if (polled[i].revents == 0) continue;
    logger("worker")->error("fatal error=\"rank {} ended\"", i + 1);
    was_said_why = was_said_why || has_said_why(polled[i].fd);
  }
  before_end_();
  if (!was_said_why) static_cast<void>(std::raise(SIGKILL));
  std::_Exit(1);
}

}  // namespace thaw::forkpool::worker
