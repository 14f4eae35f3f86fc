#include <sys/socket.h>

#include <array>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "forkpool/worker/channel.h"
#include "forkpool/worker/outbox.h"
#include "tests/forkpool/frames.h"

namespace thaw::forkpool::worker {
namespace {

using std::chrono::milliseconds;

// A channel and the pool's bare end of it.
struct Pair {
  Pair() {
    std::array<int, 2> ends{};
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0) std::abort();
    pool = UniqueFd(ends[0]);
    channel = std::make_unique<Channel>(UniqueFd(ends[1]));
  }

  // All frames that lie in the socket now.
  std::vector<Frame> arrived() {
    std::array<char, 65536> buffer;
    for (;;) {
      const ssize_t count = ::recv(pool.get(), buffer.data(), buffer.size(), MSG_DONTWAIT);
      if (count <= 0) break;
      decoder.feed(std::span<const char>(buffer.data(), static_cast<std::size_t>(count)));
    }
    std::vector<Frame> frames;
    for (auto next = decoder.next().value(); next.found; next = decoder.next().value())
      frames.push_back(std::move(next.frame));
    return frames;
  }
  void send(const std::string& bytes) const {
    ASSERT_EQ(::send(pool.get(), bytes.data(), bytes.size(), 0),
              static_cast<ssize_t>(bytes.size()));
  }

  UniqueFd pool;
  std::unique_ptr<Channel> channel;
  FrameDecoder decoder;
};

BlockEntry block(BlockId id) {
  BlockEntry published;
  published.block = id;
  published.hash.bytes[0] = static_cast<std::uint8_t>(id);
  published.tokens.fill(id);
  return published;
}

TEST(WorkerChannel, CutsFramesOutOfWhateverArrives) {
  Pair pair;
  const std::string bytes = encode_frame(CancelFrame{7});
  bool begun = false;
  for (char byte : bytes) {
    ASSERT_FALSE(pair.channel->next().value().found);
    ASSERT_EQ(pair.channel->has_part(), std::exchange(begun, true));
    pair.send(std::string(1, byte));
    ASSERT_TRUE(pair.channel->read_some());
  }
  const auto next = pair.channel->next().value();
  ASSERT_TRUE(next.found);
  EXPECT_EQ(std::get<CancelFrame>(next.frame).request, 7U);
  EXPECT_FALSE(pair.channel->next().value().found);
  EXPECT_FALSE(pair.channel->has_part());
  EXPECT_FALSE(pair.channel->ended());
  pair.pool.reset();
  ASSERT_TRUE(pair.channel->read_some());
  EXPECT_TRUE(pair.channel->ended());
}

TEST(WorkerChannel, FramesBeforeTheEndAreStillRead) {
  Pair pair;
  pair.send(encode_frame(CancelFrame{7}));
  pair.pool.reset();
  ASSERT_TRUE(pair.channel->read_some());
  EXPECT_TRUE(pair.channel->ended());
  EXPECT_TRUE(pair.channel->next().value().found);
}

TEST(WorkerChannel, AFullSocketNeitherBlocksNorLoses) {
  Pair pair;
  const FatalFrame large{make_error(Errc::kInternal, std::string(1 << 19, 'x'))};
  for (int i = 0; i < 4; ++i)
    pair.channel->queue(large);
  ASSERT_TRUE(pair.channel->write_some());
  EXPECT_GT(pair.channel->pending_bytes(), 0U);
  // Nobody reads: the deadline ends it, and what was not sent is kept.
  EXPECT_EQ(pair.channel->flush(milliseconds(1)).error().code, Errc::kDeadlineExceeded);
  std::size_t count = 0;
  while (pair.channel->pending_bytes() > 0) {
    count += pair.arrived().size();
    ASSERT_TRUE(pair.channel->write_some());
  }
  EXPECT_EQ(count + pair.arrived().size(), 4U);
}

TEST(WorkerChannel, FlushReadsWhileItWaits) {
  Pair pair;
  pair.send(encode_frame(CancelFrame{7}));
  pair.channel->queue(FatalFrame{make_error(Errc::kInternal, std::string(1 << 20, 'x'))});
  EXPECT_FALSE(pair.channel->flush(milliseconds(1)));
  EXPECT_TRUE(pair.channel->next().value().found);
}

// A frame that was read along with the one before it must not wait for the next to arrive.
TEST(WorkerChannel, DoesNotSleepOnFramesAlreadyRead) {
  Pair pair;
  pair.send(encode_frame(CancelFrame{7}) + encode_frame(CancelFrame{8}));
  ASSERT_TRUE(pair.channel->read_some());
  ASSERT_TRUE(pair.channel->next().value().found);
  ASSERT_TRUE(pair.channel->wait(std::chrono::hours(1)));  // the test's time limit fails it
  ASSERT_TRUE(pair.channel->next().value().found);
}

TEST(WorkerChannel, WritingToNobodyEndsIt) {
  Pair pair;
  pair.pool.reset();
  pair.channel->queue(ShutdownFrame{});
  EXPECT_TRUE(pair.channel->write_some());
  EXPECT_TRUE(pair.channel->ended());
  EXPECT_TRUE(pair.channel->flush(milliseconds(1)));
}

TEST(WorkerOutbox, KeepsTheOrderOfPublicationsAndEvictions) {
  Pair pair;
  Outbox outbox(*pair.channel);
  outbox.publish(block(1));
  outbox.publish(block(2));
  outbox.evict(block(1).hash);
  outbox.evict(block(2).hash);
  outbox.publish(block(1));
  outbox.add(CompletedEvent{3, {}});
  ASSERT_TRUE(outbox.flush({}));
  const auto frames = pair.arrived();
  EXPECT_EQ(kinds(frames), "publish evict publish stats events ");
  EXPECT_EQ(std::get<PublishFrame>(frames[0]).blocks.size(), 2U);
  EXPECT_EQ(std::get<EvictFrame>(frames[1]).hashes.size(), 2U);
  EXPECT_EQ(std::get<PublishFrame>(frames[2]).blocks[0].block, 1);
}

TEST(WorkerOutbox, EvictionsAreInTheSocketBeforeAnythingIsOverwritten) {
  Pair pair;
  Outbox outbox(*pair.channel);
  outbox.add(CompletedEvent{3, {}});
  outbox.publish(block(1));
  ASSERT_TRUE(outbox.flush_evictions());
  EXPECT_EQ(kinds(pair.arrived()), "");  // nothing evicted, nothing hurries
  outbox.evict(block(1).hash);
  ASSERT_TRUE(outbox.flush_evictions());
  EXPECT_EQ(kinds(pair.arrived()), "publish evict ");
  ASSERT_TRUE(outbox.flush({}));
  EXPECT_EQ(kinds(pair.arrived()), "stats events ");
}

TEST(WorkerOutbox, SendsStatsOnlyWhenTheyChange) {
  Pair pair;
  Outbox outbox(*pair.channel);
  EngineStats stats;
  ASSERT_TRUE(outbox.flush(stats));
  EXPECT_EQ(kinds(pair.arrived()), "stats ");
  ASSERT_TRUE(outbox.flush(stats));
  EXPECT_EQ(kinds(pair.arrived()), "");
  ++stats.steps;
  ASSERT_TRUE(outbox.flush(stats));
  EXPECT_EQ(kinds(pair.arrived()), "stats ");
}

TEST(WorkerOutbox, AnswersComeAfterWhatTheyReferTo) {
  Pair pair;
  Outbox outbox(*pair.channel);
  outbox.publish(block(1));
  outbox.queue(RestoreDoneFrame{1, "", 16});
  ASSERT_TRUE(outbox.flush({}));
  EXPECT_EQ(kinds(pair.arrived()), "publish restore_done stats ");
}

TEST(WorkerOutbox, CutsLongListsIntoFrames) {
  Pair pair;
  Outbox outbox(*pair.channel);
  for (BlockId id = 0; id < 10000; ++id)
    outbox.evict(block(id).hash);
  std::size_t hashes = 0;
  std::size_t frames = 0;
  do {
    ASSERT_TRUE(outbox.flush({}));
    for (const Frame& frame : pair.arrived()) {
      if (const auto* evict = std::get_if<EvictFrame>(&frame)) {
        ++frames;
        hashes += evict->hashes.size();
      }
    }
  } while (pair.channel->pending_bytes() > 0 || hashes == 0);
  EXPECT_EQ(hashes, 10000U);
  EXPECT_EQ(frames, 3U);
}

}  // namespace
}  // namespace thaw::forkpool::worker
