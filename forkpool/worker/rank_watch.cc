#include "forkpool/worker/rank_watch.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <utility>

#include "engine/base/log.h"

namespace thaw::forkpool::worker {

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
  for (std::size_t i = 0; i + 1 < polled.size(); ++i)
    if (polled[i].revents != 0) logger("worker")->error("fatal error=\"rank {} ended\"", i + 1);
  before_end_();
  std::_Exit(1);
}

}  // namespace thaw::forkpool::worker
