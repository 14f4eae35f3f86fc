#include "forkpool/channel.h"

#include <sys/socket.h>

#include <array>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

namespace thaw::forkpool {
namespace {

// A channel and the worker's bare end of it.
struct Pair {
  explicit Pair(Loop& loop) {
    std::array<int, 2> ends{};
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0) std::abort();
    worker = UniqueFd(ends[0]);
    channel = std::make_unique<Channel>(
        loop, UniqueFd(ends[1]),
        Channel::Callbacks{[](const Frame&) {}, [](const Result<void>&) {}});
  }
  // What one read finds: the requests of cancel frames.
  std::vector<RequestId> read_once() const {
    std::array<char, 4096> buffer;
    const ssize_t count = ::recv(worker.get(), buffer.data(), buffer.size(), MSG_DONTWAIT);
    FrameDecoder decoder;
    if (count > 0)
      decoder.feed(std::span<const char>(buffer).first(static_cast<std::size_t>(count)));
    std::vector<RequestId> found;
    for (auto next = decoder.next().value(); next.found; next = decoder.next().value())
      found.push_back(std::get<CancelFrame>(next.frame).request);
    return found;
  }

  UniqueFd worker;
  std::unique_ptr<Channel> channel;
};

TEST(Channel, WhatOneTurnSaysIsWrittenTogetherAtItsEnd) {
  Loop loop;
  Pair pair(loop);
  std::vector<RequestId> during;
  std::vector<RequestId> after;
  loop.post([&] {
    for (const RequestId id : {1, 2, 3})
      pair.channel->send(CancelFrame{id});
    during = pair.read_once();
    loop.post([&] {
      after = pair.read_once();
      loop.stop();
    });
  });
  loop.run();
  EXPECT_EQ(during, std::vector<RequestId>());
  EXPECT_EQ(after, (std::vector<RequestId>{1, 2, 3}));
  EXPECT_EQ(pair.channel->unsent_bytes(), 0U);
}

TEST(Channel, MayGoBeforeItHasWritten) {
  Loop loop;
  Pair pair(loop);
  loop.post([&] {
    pair.channel->send(CancelFrame{1});
    pair.channel.reset();
    loop.post([&] { loop.stop(); });
  });
  loop.run();
  EXPECT_EQ(pair.read_once(), std::vector<RequestId>());
}

}  // namespace
}  // namespace thaw::forkpool
