#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <memory>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include "engine/base/crc32c.h"
#include "kvsnap/arena.h"
#include "kvsnap/snapshot_reader.h"
#include "kvsnap/snapshot_writer.h"

namespace thaw::kvsnap {
namespace {

constexpr Holder kWriter{0, 0};
constexpr Holder kReader{1, 0};

std::vector<std::byte> random_bytes(std::size_t size_bytes, unsigned seed) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> bytes(size_bytes);
  for (std::byte& byte : bytes)
    byte = static_cast<std::byte>(random());
  return bytes;
}

// One arena, a "pool" of blocks on each side, and a snapshot that takes blocks out of order.
class SnapshotTest : public testing::TestWithParam<std::uint64_t> {
 protected:
  static constexpr std::size_t kNumBlocks = 7;

  void SetUp() override {
    format_ = {"bf16 test", 16, GetParam(), 0, 1};
    arena_ = std::make_unique<Arena>(std::move(Arena::create(64 * GetParam() + 65536)).value());
    view_ = std::make_unique<ArenaView>(std::move(ArenaView::map(arena_->fd())).value());
    source_ = random_bytes(kNumBlocks * GetParam(), 3);
    destination_.assign(source_.size(), std::byte{0xEE});
    root_.bytes.fill(9);
  }

  std::vector<const std::byte*> source_blocks() const {
    std::vector<const std::byte*> blocks;
    for (std::size_t i = 0; i < kNumBlocks; ++i)
      blocks.push_back(source_.data() + (i * 3 % kNumBlocks) * GetParam());
    return blocks;
  }
  std::vector<std::byte*> destination_blocks() {
    std::vector<std::byte*> blocks;
    for (std::size_t i = 0; i < kNumBlocks; ++i)
      blocks.push_back(destination_.data() + i * GetParam());
    return blocks;
  }

  Manifest request(const WriteLease& lease) const {
    Manifest manifest{root_, format_.kv_layout, 16, GetParam(), {}, 0, 1, lease.extents};
    for (std::size_t i = 0; i < 16 * kNumBlocks; ++i)
      manifest.token_ids.push_back(static_cast<TokenId>(i));
    return manifest;
  }

  Result<Manifest> write(const Manifest& manifest) {
    SnapshotWriter writer(*view_, *pipeline_, format_);
    auto pending = writer.start(manifest, root_, source_blocks());
    if (!pending) return pending.error();
    EXPECT_TRUE(writer.done(*pending));
    return writer.finish(std::move(*pending));
  }
  Manifest write_new() {
    const auto lease = arena_->lease_for_writing(kWriter, kNumBlocks, GetParam()).value();
    return write(request(lease)).value();
  }
  Result<void> read(const Manifest& manifest, std::vector<std::byte*> blocks) {
    SnapshotReader reader(*view_, *pipeline_, format_);
    auto pending = reader.start(manifest, root_, blocks);
    if (!pending) return pending.error();
    return reader.finish(*pending);
  }
  void expect_equal_blocks() {
    const auto from = source_blocks();
    for (std::size_t i = 0; i < kNumBlocks; ++i) {
      EXPECT_TRUE(std::equal(from[i], from[i] + GetParam(), destination_.data() + i * GetParam()))
          << "block " << i;
    }
  }
  bool destination_untouched() const {
    return destination_ == std::vector<std::byte>(destination_.size(), std::byte{0xEE});
  }

  ThreadPool threads_{2};
  std::unique_ptr<CopyPipeline> pipeline_ = make_cpu_copy_pipeline(threads_);
  KvFormat format_;
  Hash128 root_;
  std::unique_ptr<Arena> arena_;
  std::unique_ptr<ArenaView> view_;
  std::vector<std::byte> source_;
  std::vector<std::byte> destination_;
};

// Odd sizes, a page, several chunks to a block.
INSTANTIATE_TEST_SUITE_P(BlockBytes, SnapshotTest,
                         testing::Values(1, 63, 1000, 4096, 368640, 1 << 20));

TEST_P(SnapshotTest, RoundTrip) {
  const Manifest manifest = write_new();
  ASSERT_EQ(manifest.extents.size(), 1U);
  EXPECT_EQ(manifest.extents[0].crc32c, crc32c(view_->bytes(manifest.extents[0])));
  ASSERT_TRUE(read(manifest, destination_blocks()));
  expect_equal_blocks();
}

TEST_P(SnapshotTest, RoundTripOverFragments) {
  // Hold every second gap so that no free range takes the whole snapshot.
  const std::uint64_t unit = (GetParam() + 4095) / 4096 * 4096;
  std::vector<WriteLease> holds;
  while (auto lease = arena_->lease_for_writing(kWriter, 1, unit))
    holds.push_back(*lease);
  for (std::size_t i = 0; i < holds.size(); i += 2)
    arena_->abandon(holds[i].id, kWriter);
  const Manifest manifest = write_new();
  const bool one_page_is_enough = unit / GetParam() >= kNumBlocks;
  EXPECT_EQ(manifest.extents.size() > 1, !one_page_is_enough);
  ASSERT_TRUE(read(manifest, destination_blocks()));
  expect_equal_blocks();
}

TEST_P(SnapshotTest, BlocksThatAreNotWantedAreStillVerified) {
  const Manifest manifest = write_new();
  auto blocks = destination_blocks();
  blocks[0] = blocks[4] = nullptr;
  ASSERT_TRUE(read(manifest, blocks));
  EXPECT_EQ(destination_[0], std::byte{0xEE});
  EXPECT_EQ(destination_[4 * GetParam()], std::byte{0xEE});
  EXPECT_TRUE(std::equal(source_blocks()[1], source_blocks()[1] + GetParam(), blocks[1]));
  view_->bytes(manifest.extents[0])[0] ^= std::byte{1};
  EXPECT_FALSE(read(manifest, blocks));
}

TEST_P(SnapshotTest, AnyFlippedBitIsCaught) {
  const Manifest manifest = write_new();
  std::mt19937 random(11);
  for (const Extent& extent : manifest.extents) {
    const std::span<std::byte> bytes = view_->bytes(extent);
    // Every byte of small payloads, and places all over large ones.
    const std::size_t step = std::max<std::size_t>(1, bytes.size() / 64);
    for (std::size_t at = 0; at < bytes.size(); at += step) {
      const std::size_t place = std::min(bytes.size() - 1, at + random() % step);
      const auto bit = static_cast<std::byte>(1 << random() % 8);
      bytes[place] ^= bit;
      const auto result = read(manifest, destination_blocks());
      ASSERT_FALSE(result) << "byte " << place;
      ASSERT_EQ(result.error().code, Errc::kDataLoss);
      ASSERT_NE(result.error().message.find("CRC32C"), std::string::npos);
      bytes[place] ^= bit;
    }
  }
  EXPECT_TRUE(read(manifest, destination_blocks()));
}

TEST_P(SnapshotTest, EveryOtherMismatchIsNamedAndNothingIsWritten) {
  const Manifest good = write_new();
  const auto expect_refused = [&](const std::string& what,
                                  const std::function<void(Manifest&)>& change) {
    Manifest bad = good;
    change(bad);
    const auto result = read(bad, destination_blocks());
    ASSERT_FALSE(result) << what;
    EXPECT_EQ(result.error().code, Errc::kDataLoss) << what;
    EXPECT_NE(result.error().message.find(what), std::string::npos) << result.error().message;
    EXPECT_TRUE(destination_untouched()) << what;
    EXPECT_FALSE(write(bad)) << what;
  };
  expect_refused("cache root", [](Manifest& m) { m.cache_root.bytes[15] ^= 1; });
  expect_refused("KV layout", [](Manifest& m) { m.kv_layout += "x"; });
  expect_refused("block size", [](Manifest& m) {
    m.block_size = 8;
    m.token_ids.resize(8 * kNumBlocks);
  });
  expect_refused("bytes in a block", [](Manifest& m) {
    m.block_bytes *= kNumBlocks;
    m.token_ids.resize(16);
  });
  expect_refused("rank", [](Manifest& m) { m.tp_rank = 1; });
  expect_refused("rank", [](Manifest& m) { m.tp_size = 2; });
  expect_refused("multiple of the block", [](Manifest& m) { m.token_ids.pop_back(); });
  expect_refused("multiple of the block", [](Manifest& m) { m.token_ids.clear(); });
  expect_refused("number of blocks", [](Manifest& m) { m.token_ids.resize(16 * 8); });
  expect_refused("hold more", [](Manifest& m) { m.token_ids.resize(16); });
  expect_refused("blocks of 0 tokens", [](Manifest& m) { m.block_size = 0; });
  expect_refused("0 bytes", [](Manifest& m) { m.block_bytes = 0; });
  expect_refused("an extent of 0 bytes", [](Manifest& m) { m.extents[0].size_bytes = 0; });
  expect_refused("outside the arena", [&](Manifest& m) { m.extents[0].offset = 1ULL << 40; });
  expect_refused("outside the arena", [&](Manifest& m) { m.extents[0].offset = ~0ULL; });
  expect_refused("outside the arena", [&](Manifest& m) {
    m.extents[0].offset = arena_->size_bytes() - m.extents[0].size_bytes + 1;
  });
  expect_refused("overlaps", [](Manifest& m) {
    m.extents.push_back(m.extents[0]);
    m.token_ids.resize(2 * m.token_ids.size());
  });
}

TEST_P(SnapshotTest, NumberOfBlocksMustAgree) {
  const Manifest manifest = write_new();
  auto blocks = destination_blocks();
  blocks.pop_back();
  EXPECT_EQ(read(manifest, blocks).error().code, Errc::kInvalidArgument);
  EXPECT_TRUE(destination_untouched());
}

TEST_P(SnapshotTest, ACopyIsCollectedOnce) {
  const CopyHandle handle = pipeline_->launch(CopyDirection::kToArena, {}).value();
  EXPECT_TRUE(pipeline_->collect(handle).value().empty());
  EXPECT_FALSE(pipeline_->collect(handle));
}

TEST_P(SnapshotTest, LeaseWritePublishReadEvict) {
  const auto lease = arena_->lease_for_writing(kWriter, kNumBlocks, GetParam()).value();
  const SnapshotId id = arena_->publish(lease.id, kWriter, write(request(lease)).value()).value();
  const ReadLease reading = arena_->lease_for_reading(id, kReader).value();
  ASSERT_TRUE(read(reading.manifest, destination_blocks()));
  expect_equal_blocks();
  arena_->end_reading(reading.id);
  arena_->remove(id);
  EXPECT_EQ(arena_->used_bytes(), 0U);
}

// The writer is a process of its own, which sees nothing but the descriptor and the manifest.
TEST(SnapshotProcesses, WrittenByOneReadByAnother) {
  constexpr std::uint64_t kBytes = 40000;
  const KvFormat format{"bf16 test", 16, kBytes, 0, 1};
  Arena arena = std::move(Arena::create(1 << 20)).value();
  const auto lease = arena.lease_for_writing(kWriter, 3, kBytes).value();
  Manifest manifest{{}, format.kv_layout, 16, kBytes, std::vector<TokenId>(48, 5), 0,
                    1,  lease.extents};
  const std::vector<std::byte> payload = random_bytes(3 * kBytes, 21);

  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    ThreadPool threads(1);
    const auto pipeline = make_cpu_copy_pipeline(threads);
    const auto view = ArenaView::map(arena.fd());
    const std::vector<const std::byte*> blocks{payload.data(), payload.data() + kBytes,
                                               payload.data() + 2 * kBytes};
    SnapshotWriter writer(*view, *pipeline, format);
    auto pending = writer.start(manifest, {}, blocks);
    const bool written = pending && writer.finish(std::move(*pending));
    ::_exit(written ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_EQ(status, 0);
  arena.worker_exited({7, 0});  // somebody else's exit changes nothing

  manifest.extents[0].crc32c = crc32c(payload);
  const SnapshotId id = arena.publish(lease.id, kWriter, manifest).value();
  arena.worker_exited(kWriter);
  const ReadLease reading = arena.lease_for_reading(id, kReader).value();
  ThreadPool threads(1);
  const auto pipeline = make_cpu_copy_pipeline(threads);
  const auto view = std::move(ArenaView::map(arena.fd())).value();
  std::vector<std::byte> out(3 * kBytes);
  const std::vector<std::byte*> blocks{out.data(), out.data() + kBytes, out.data() + 2 * kBytes};
  SnapshotReader reader(view, *pipeline, format);
  auto pending = reader.start(reading.manifest, {}, blocks);
  ASSERT_TRUE(pending) << pending.error().message;
  ASSERT_TRUE(reader.finish(*pending));
  EXPECT_EQ(out, payload);
}

TEST(CpuCopyPipeline, LargeCopiesLetOthersIn) {
  constexpr std::size_t kBytes = std::size_t{40} << 20;
  ThreadPool threads(2);
  const auto pipeline = make_cpu_copy_pipeline(threads);
  const std::vector<std::byte> from = random_bytes(kBytes, 3);
  std::vector<std::byte> to(kBytes);
  std::vector<std::byte> small(1000);
  const auto copy_to = [&](std::vector<std::byte>& out) {
    return pipeline
        ->launch(CopyDirection::kFromArena, {ExtentCopy{{{from.data(), out.data(), out.size()}}}})
        .value();
  };
  const CopyHandle large = copy_to(to);
  EXPECT_FALSE(pipeline->done(large));
  const CopyHandle other = copy_to(small);
  EXPECT_TRUE(pipeline->done(other)) << "what is small is done at once";
  int steps = 0;
  for (; !pipeline->done(large) && steps < 10; ++steps)
    pipeline->advance();
  EXPECT_EQ(steps, 2);
  EXPECT_EQ(pipeline->collect(large).value(), std::vector<std::uint32_t>{crc32c(from)});
  EXPECT_EQ(to, from);
  EXPECT_EQ(pipeline->collect(other).value(),
            std::vector<std::uint32_t>{crc32c(std::span(from).first(small.size()))});
  std::ranges::fill(to, std::byte{0});
  EXPECT_TRUE(pipeline->collect(copy_to(to))) << "collected before it is done";
  EXPECT_EQ(to, from);
  EXPECT_FALSE(pipeline->collect(large)) << "twice";
}

TEST(ArenaView, RefusesADescriptorThatIsNone) {
  EXPECT_FALSE(ArenaView::map(-1));
  const UniqueFd empty = std::move(create_memfd("empty", 0)).value();
  EXPECT_EQ(ArenaView::map(empty.get()).error().code, Errc::kInvalidArgument);
}

}  // namespace
}  // namespace thaw::kvsnap
