#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "engine/base/hash.h"
#include "engine/base/thread_pool.h"
#include "forkpool/worker/snapshot_service.h"
#include "kvsnap/arena.h"
#include "tests/forkpool/frames.h"

namespace thaw::forkpool::worker {
namespace {

constexpr std::uint64_t kBlockBytes = 5000;
const Hash128 kTrunkRoot = hash_text("root");

// A copy engine that has not finished until it is told to.
class SlowPipeline final : public kvsnap::CopyPipeline {
 public:
  explicit SlowPipeline(std::unique_ptr<kvsnap::CopyPipeline> inner) : inner_(std::move(inner)) {}
  Result<kvsnap::CopyHandle> launch(kvsnap::CopyDirection direction,
                                    std::vector<kvsnap::ExtentCopy> extents) override {
    if (refusal) return *refusal;
    return inner_->launch(direction, std::move(extents));
  }
  bool done(kvsnap::CopyHandle) const override { return finished; }
  Result<std::vector<std::uint32_t>> collect(kvsnap::CopyHandle handle) override {
    if (failure) return *failure;
    return inner_->collect(handle);
  }
  std::vector<std::uint32_t> checked(kvsnap::CopyHandle handle) const override {
    auto sums = inner_->checked(handle);
    sums.resize(std::min(sums.size(), num_checked));
    return sums;
  }
  bool finished = true;
  std::size_t num_checked = 0;  ///< extents that are told of, at most
  std::optional<Error> failure;  ///< of the device
  std::optional<Error> refusal;  ///< to begin

 private:
  std::unique_ptr<kvsnap::CopyPipeline> inner_;
};

// One worker without a model: blocks, index, service, and the pool's end of its channel.
struct Side {
  Side(std::size_t num_blocks, kvsnap::ArenaView& arena) : pool(num_blocks) {
    std::array<int, 2> ends{};
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0) std::abort();
    pool_end = UniqueFd(ends[0]);
    channel = std::make_unique<Channel>(UniqueFd(ends[1]));
    outbox.emplace(*channel);
    kv::RadixIndex::Listener listener;
    listener.on_publish = [this](const BlockEntry& b) { outbox->publish(b); };
    listener.on_evict = [this](const Hash128& hash, BlockId) { outbox->evict(hash); };
    index = std::make_unique<kv::RadixIndex>(pool, std::move(listener));
    memory.resize(num_blocks * kBlockBytes);
    SnapshotService::Parts parts;
    parts.pool = &pool;
    parts.index = index.get();
    parts.kv = {memory.data(), {"test", kBlockSize, kBlockBytes, 0, 1}};
    parts.arena = &arena;
    parts.pipeline = &pipeline;
    parts.outbox = &*outbox;
    parts.map_peer = [this](const DeviceMemory& peer) -> Result<std::unique_ptr<PeerMemory>> {
      if (reachable == nullptr) return make_error(Errc::kUnsupported, peer.device + " is too far");
      return std::unique_ptr<PeerMemory>(std::make_unique<MappedSide>(reachable->memory.data()));
    };
    service.emplace(parts);
  }

  // Publishes blocks for `tokens`, filled with bytes that their tokens decide.
  void fill(const std::vector<TokenId>& tokens) {
    std::vector<BlockId> blocks;
    for (std::size_t at = 0; at < tokens.size(); at += kBlockSize) {
      blocks.push_back(pool.allocate());
      std::fill_n(memory.data() + blocks.back() * kBlockBytes, kBlockBytes,
                  static_cast<std::byte>(tokens[at]));
    }
    index->insert(kTrunkRoot, tokens, blocks);
    for (BlockId block : blocks)
      pool.release(block);
  }

  bool holds(const std::vector<TokenId>& tokens) const {
    const auto match = index->match(kTrunkRoot, tokens);
    if (match.full_blocks.size() * kBlockSize != tokens.size()) return false;
    for (std::size_t i = 0; i < match.full_blocks.size(); ++i) {
      const std::byte* block = memory.data() + match.full_blocks[i] * kBlockBytes;
      if (std::count(block, block + kBlockBytes, static_cast<std::byte>(tokens[i * kBlockSize])) !=
          kBlockBytes) {
        return false;
      }
    }
    return true;
  }

  std::vector<Frame> sent() {
    EXPECT_TRUE(outbox->flush({}));
    std::array<char, 65536> buffer;
    for (;;) {
      const ssize_t count = ::recv(pool_end.get(), buffer.data(), buffer.size(), MSG_DONTWAIT);
      if (count <= 0) break;
      decoder.feed(std::span<const char>(buffer.data(), static_cast<std::size_t>(count)));
    }
    std::vector<Frame> frames;
    for (auto next = decoder.next().value(); next.found; next = decoder.next().value())
      if (!std::holds_alternative<StatsFrame>(next.frame)) frames.push_back(std::move(next.frame));
    return frames;
  }

  void expect_sound(std::size_t blocks_in_index) const {
    const auto sound = index->check_integrity();
    EXPECT_TRUE(sound) << sound.error().message;
    EXPECT_EQ(index->num_blocks(), blocks_in_index);
    EXPECT_EQ(pool.num_free(), pool.num_blocks() - blocks_in_index);
    EXPECT_EQ(index->num_evictable(), blocks_in_index);  // nothing stays locked
  }

  struct MappedSide final : PeerMemory {
    explicit MappedSide(const std::byte* data) : data(data) {}
    const std::byte* base() const override { return data; }
    const std::byte* data;
  };
  PeerFrame introduction(std::uint32_t worker) const {
    DeviceMemory memory;
    memory.device = "side";
    memory.kv_bytes = this->memory.size();
    memory.kv_layout = "test";
    memory.block_bytes = kBlockBytes;
    return {worker, memory};
  }

  const Side* reachable = nullptr;  ///< whose memory can be mapped
  UniqueFd pool_end;
  FrameDecoder decoder;
  std::unique_ptr<Channel> channel;
  std::optional<Outbox> outbox;
  kv::BlockPool pool;
  std::unique_ptr<kv::RadixIndex> index;
  std::vector<std::byte> memory;
  ThreadPool threads{1};
  SlowPipeline pipeline{kvsnap::make_cpu_copy_pipeline(threads)};
  std::optional<SnapshotService> service;
};

std::vector<TokenId> tokens_from(TokenId first, std::size_t num_blocks) {
  std::vector<TokenId> tokens(num_blocks * kBlockSize);
  for (std::size_t i = 0; i < tokens.size(); ++i)
    tokens[i] = first + static_cast<TokenId>(i);
  return tokens;
}

class SnapshotServiceTest : public testing::Test {
 protected:
  kvsnap::Manifest lease(const std::vector<TokenId>& tokens) {
    const auto lease = arena_.lease_for_writing({}, tokens.size() / kBlockSize, kBlockBytes);
    return {kTrunkRoot, "test", kBlockSize, kBlockBytes, tokens, 0, 1, lease.value().extents};
  }
  // A snapshot of `tokens` in the arena, from a worker that is gone.
  kvsnap::Manifest snapshot_of(const std::vector<TokenId>& tokens) {
    Side side(tokens.size() / kBlockSize, view_);
    side.fill(tokens);
    side.sent();
    kvsnap::Manifest manifest = lease(tokens);
    EXPECT_TRUE(side.service->snapshot({1, manifest}));
    EXPECT_TRUE(side.service->poll());
    const auto frames = side.sent();
    return with_checksums(std::move(manifest), std::get<SnapshotDoneFrame>(frames.at(0)));
  }
  static std::string restore_error(Side& side, const kvsnap::Manifest& manifest) {
    EXPECT_TRUE(side.service->restore({3, manifest}));
    EXPECT_TRUE(side.service->poll());
    for (const Frame& frame : side.sent())
      if (const auto* done = std::get_if<RestoreDoneFrame>(&frame)) return done->error;
    return "no answer";
  }

  kvsnap::Arena arena_ = std::move(kvsnap::Arena::create(1 << 20)).value();
  kvsnap::ArenaView view_ = std::move(kvsnap::ArenaView::map(arena_.fd())).value();
  const std::vector<TokenId> trunk_ = tokens_from(1, 5);
};

TEST_F(SnapshotServiceTest, CarriesBlocksToAnotherWorker) {
  const kvsnap::Manifest manifest = snapshot_of(trunk_);
  Side side(8, view_);
  ASSERT_TRUE(side.service->restore({3, manifest}));
  EXPECT_TRUE(side.service->busy());
  ASSERT_TRUE(side.service->poll());
  EXPECT_FALSE(side.service->busy());
  const auto frames = side.sent();
  ASSERT_EQ(kinds(frames), "restore_done publish ");
  EXPECT_EQ(std::get<PublishFrame>(frames[1]).blocks.size(), 5U);
  EXPECT_EQ(std::get<RestoreDoneFrame>(frames[0]).num_tokens, trunk_.size());
  EXPECT_TRUE(side.holds(trunk_));
  EXPECT_EQ(side.service->num_restores(), 1U);
  side.expect_sound(5);
}

TEST_F(SnapshotServiceTest, EvictsWhatIsInTheWayAndSaysSoFirst) {
  const kvsnap::Manifest manifest = snapshot_of(trunk_);
  Side side(6, view_);
  side.fill(tokens_from(500, 4));
  side.sent();
  ASSERT_TRUE(side.service->restore({3, manifest}));
  // The copy is launched; the pool can already read what was evicted for it.
  const auto before = side.sent();
  ASSERT_EQ(kinds(before), "evict ");
  EXPECT_EQ(std::get<EvictFrame>(before[0]).hashes.size(), 3U);
  ASSERT_TRUE(side.service->poll());
  EXPECT_EQ(kinds(side.sent()), "restore_done publish ");
  EXPECT_TRUE(side.holds(trunk_));
  side.expect_sound(6);
}

TEST_F(SnapshotServiceTest, WithoutRoomNothingIsEvicted) {
  const kvsnap::Manifest manifest = snapshot_of(trunk_);
  Side side(6, view_);
  side.fill(tokens_from(500, 4));
  const BlockId busy = side.pool.allocate();
  const auto match = side.index->match(kTrunkRoot, tokens_from(500, 4));
  const auto lock = side.index->lock(match);
  side.sent();
  EXPECT_NE(restore_error(side, manifest).find("needs 5 blocks; 1 are free and 0 evictable"),
            std::string::npos);
  EXPECT_EQ(side.index->num_blocks(), 4U);
  EXPECT_EQ(side.pool.num_free(), 1U);
  side.pool.release(busy);
}

TEST_F(SnapshotServiceTest, KeepsWhatIsAliveAndEvictsNoneOfIt) {
  const kvsnap::Manifest manifest = snapshot_of(trunk_);
  Side side(5, view_);
  side.fill({trunk_.begin(), trunk_.begin() + 2 * kBlockSize});
  side.fill(tokens_from(500, 3));
  const auto alive = side.index->match(kTrunkRoot, trunk_).full_blocks;
  EXPECT_EQ(restore_error(side, manifest), "");
  EXPECT_TRUE(side.holds(trunk_));
  const auto after = side.index->match(kTrunkRoot, trunk_).full_blocks;
  EXPECT_TRUE(std::equal(alive.begin(), alive.end(), after.begin()));
  side.expect_sound(5);
}

TEST_F(SnapshotServiceTest, DamageFreesTheBlocks) {
  const kvsnap::Manifest manifest = snapshot_of(trunk_);
  view_.bytes(manifest.extents[0]).back() ^= std::byte{1};
  Side side(8, view_);
  side.fill(tokens_from(500, 2));
  EXPECT_NE(restore_error(side, manifest).find("CRC32C"), std::string::npos);
  EXPECT_EQ(side.index->match(kTrunkRoot, trunk_).num_tokens, 0U);
  EXPECT_TRUE(side.holds(tokens_from(500, 2)));
  EXPECT_EQ(side.service->num_restores(), 0U);
  side.expect_sound(2);
}

TEST_F(SnapshotServiceTest, ARefusedManifestEvictsNothing) {
  kvsnap::Manifest manifest = snapshot_of(trunk_);
  manifest.kv_layout = "another";
  Side side(5, view_);
  side.fill(tokens_from(500, 5));
  EXPECT_NE(restore_error(side, manifest).find("KV layout"), std::string::npos);
  EXPECT_TRUE(side.holds(tokens_from(500, 5)));
  side.expect_sound(5);
}

TEST_F(SnapshotServiceTest, BlocksBeingWrittenOutAreNotEvicted) {
  Side side(5, view_);
  side.fill(trunk_);
  side.pipeline.finished = false;
  ASSERT_TRUE(side.service->snapshot({1, lease(trunk_)}));
  ASSERT_TRUE(side.service->poll());
  EXPECT_TRUE(side.service->busy());
  EXPECT_EQ(side.index->evict(5), 0U);
  side.pipeline.finished = true;
  ASSERT_TRUE(side.service->poll());
  EXPECT_FALSE(side.service->busy());
  EXPECT_EQ(side.service->num_snapshots(), 1U);
  EXPECT_EQ(kinds(side.sent()), "publish snapshot_done ");
  side.expect_sound(5);
  EXPECT_EQ(side.index->evict(5), 5U);
}

TEST_F(SnapshotServiceTest, SomebodyElsePublishedTheTrunkMeanwhile) {
  const kvsnap::Manifest manifest = snapshot_of(trunk_);
  Side side(12, view_);
  side.pipeline.finished = false;
  ASSERT_TRUE(side.service->restore({3, manifest}));
  ASSERT_TRUE(side.service->poll());
  EXPECT_EQ(side.index->match(kTrunkRoot, trunk_).num_tokens, 0U);  // unpublished until verified
  EXPECT_EQ(side.pool.num_free(), 7U);
  side.fill(trunk_);
  side.pipeline.finished = true;
  ASSERT_TRUE(side.service->poll());
  const auto frames = side.sent();
  EXPECT_EQ(kinds(frames), "publish restore_done ");  // published once
  EXPECT_EQ(std::get<RestoreDoneFrame>(frames[1]).error, "");
  EXPECT_TRUE(side.holds(trunk_));
  side.expect_sound(5);
}

TEST_F(SnapshotServiceTest, TokensThatAreNotAliveAreCounted) {
  Side side(5, view_);
  side.fill({trunk_.begin(), trunk_.begin() + 2 * kBlockSize});
  side.sent();
  ASSERT_TRUE(side.service->snapshot({1, lease(trunk_)}));
  EXPECT_FALSE(side.service->busy());
  const auto frames = side.sent();
  ASSERT_EQ(kinds(frames), "snapshot_done ");
  EXPECT_NE(std::get<SnapshotDoneFrame>(frames[0]).error.find("32 tokens is alive"),
            std::string::npos);
  side.expect_sound(2);
}

TEST_F(SnapshotServiceTest, WhatIsLentStaysAndIsCopiedStraight) {
  Side source(5, view_);
  source.fill(trunk_);
  source.sent();
  source.service->lend({7, kTrunkRoot, trunk_});
  const auto answers = source.sent();
  ASSERT_EQ(kinds(answers), "lent ");
  const auto& lent = std::get<LentFrame>(answers[0]);
  EXPECT_EQ(lent.error, "");
  ASSERT_EQ(lent.blocks.size(), 5U);
  EXPECT_EQ(source.index->evict(5), 0U);

  Side side(8, view_);
  side.reachable = &source;
  side.service->meet(source.introduction(4));
  side.pipeline.finished = false;
  ASSERT_TRUE(side.service->borrow({7, 4, kTrunkRoot, trunk_, {}}));
  ASSERT_TRUE(side.service->poll());
  EXPECT_TRUE(side.service->busy());
  EXPECT_FALSE(side.service->copying());
  EXPECT_EQ(side.pool.num_free(), 8U);  // no block is taken before there is something to copy
  side.fill({trunk_.begin(), trunk_.begin() + 2 * kBlockSize});  // is not copied again
  side.sent();
  ASSERT_TRUE(side.service->lent({8, "", lent.blocks}));  // nobody's
  ASSERT_TRUE(side.service->lent(lent));
  ASSERT_TRUE(side.service->poll());
  EXPECT_TRUE(side.service->copying());
  EXPECT_EQ(side.pool.num_free(), 3U);
  ASSERT_TRUE(side.service->lent({7, "once is enough", {}}));
  EXPECT_EQ(kinds(side.sent()), "");  // nothing is published before all has arrived
  side.service->meet({4, {}});  // what copies out of it keeps the mapping
  side.pipeline.finished = true;
  ASSERT_TRUE(side.service->poll());
  const auto frames = side.sent();
  ASSERT_EQ(kinds(frames), "restore_done publish ");
  EXPECT_EQ(std::get<RestoreDoneFrame>(frames[0]).num_tokens, trunk_.size());
  EXPECT_TRUE(side.holds(trunk_));
  side.expect_sound(5);

  source.service->take_back({7});
  source.expect_sound(5);
  EXPECT_EQ(source.index->evict(5), 5U);
}

// The pool names the blocks that it knows of: they are copied while the source looks whether it can
// lend them, and count once it has.
TEST_F(SnapshotServiceTest, WhatIsNamedIsCopiedBeforeItIsLent) {
  Side source(5, view_);
  source.fill(trunk_);
  const auto blocks = source.index->match(kTrunkRoot, trunk_).full_blocks;
  Side side(8, view_);
  side.reachable = &source;
  side.service->meet(source.introduction(4));
  ASSERT_TRUE(side.service->borrow({7, 4, kTrunkRoot, trunk_, blocks}));
  EXPECT_TRUE(side.service->copying());
  ASSERT_TRUE(side.service->poll());
  EXPECT_FALSE(side.service->copying());
  EXPECT_TRUE(side.service->busy());
  EXPECT_EQ(kinds(side.sent()), "");  // nobody holds them as yet
  EXPECT_EQ(side.index->num_blocks(), 0U);
  ASSERT_TRUE(side.service->lent({7, "", {}}));
  ASSERT_TRUE(side.service->poll());
  EXPECT_EQ(kinds(side.sent()), "restore_done publish ");
  EXPECT_TRUE(side.holds(trunk_));
  side.expect_sound(5);
}

TEST_F(SnapshotServiceTest, WhatWasNotLentAsNamedIsCopiedAgain) {
  Side source(10, view_);
  source.fill(tokens_from(700, 5));  // not what it is taken for
  source.fill(trunk_);
  const auto named = source.index->match(kTrunkRoot, tokens_from(700, 5)).full_blocks;
  const auto lent = source.index->match(kTrunkRoot, trunk_).full_blocks;
  Side side(8, view_);
  side.reachable = &source;
  side.service->meet(source.introduction(4));
  side.pipeline.finished = false;
  ASSERT_TRUE(side.service->borrow({7, 4, kTrunkRoot, trunk_, named}));
  ASSERT_TRUE(side.service->lent({7, "", lent}));
  ASSERT_TRUE(side.service->poll());
  EXPECT_EQ(kinds(side.sent()), "");
  EXPECT_EQ(side.pool.num_free(), 3U);
  side.pipeline.finished = true;
  ASSERT_TRUE(side.service->poll());  // the first copy is done, and the second begins
  ASSERT_TRUE(side.service->poll());
  EXPECT_EQ(kinds(side.sent()), "restore_done publish ");
  EXPECT_TRUE(side.holds(trunk_));
  side.expect_sound(5);

  // Where they are not lent at all, what was copied is given up.
  Side other(8, view_);
  other.reachable = &source;
  other.service->meet(source.introduction(4));
  ASSERT_TRUE(other.service->borrow({7, 4, kTrunkRoot, trunk_, named}));
  ASSERT_TRUE(other.service->lent({7, "they are gone", {}}));
  ASSERT_TRUE(other.service->poll());
  EXPECT_EQ(kinds(other.sent()), "restore_done ");
  other.expect_sound(0);
}

TEST_F(SnapshotServiceTest, WhatCannotBeLentOrBorrowedIsNamed) {
  Side source(5, view_);
  source.fill({trunk_.begin(), trunk_.begin() + 2 * kBlockSize});
  source.sent();
  source.service->lend({7, kTrunkRoot, trunk_});
  EXPECT_NE(std::get<LentFrame>(source.sent().at(0)).error.find("32 tokens is alive"),
            std::string::npos);
  source.expect_sound(2);

  Side side(8, view_);
  const auto refusal = [&](const LentFrame& lent, bool at_once = false) {
    EXPECT_TRUE(side.service->borrow({7, 4, kTrunkRoot, trunk_, {}}));
    EXPECT_EQ(side.service->busy(), !at_once);
    EXPECT_TRUE(side.service->lent(lent));
    EXPECT_TRUE(side.service->poll());
    EXPECT_FALSE(side.service->busy());
    const auto frames = side.sent();
    EXPECT_EQ(kinds(frames), "restore_done ");
    return std::get<RestoreDoneFrame>(frames.at(0)).error;
  };
  const LentFrame good{7, "", {0, 1, 2, 3, 4}};
  EXPECT_NE(refusal(good, true).find("nobody has told"), std::string::npos);
  side.service->meet(source.introduction(4));
  EXPECT_NE(refusal(good, true).find("side is too far"), std::string::npos);
  side.reachable = &source;
  side.service->meet(source.introduction(4));
  EXPECT_NE(refusal({7, "", {0, 1, 2, 3, 5}}).find("block 5 of the peer's 5"), std::string::npos);
  EXPECT_NE(refusal({7, "", {0, 1, 2}}).find("3 blocks are lent for 5"), std::string::npos);
  EXPECT_NE(refusal({7, "its worker died", {}}).find("its worker died"), std::string::npos);
  EXPECT_NE(refusal({7, "", {}}).find("no block was named"), std::string::npos);
  side.pipeline.failure = make_error(Errc::kIo, "the copy failed");
  EXPECT_NE(refusal(good).find("the copy failed"), std::string::npos);
  side.pipeline.failure.reset();
  side.pipeline.refusal = make_error(Errc::kIo, "no copy today");
  EXPECT_NE(refusal(good).find("no copy today"), std::string::npos);
  side.pipeline.refusal.reset();
  PeerFrame other = source.introduction(4);
  other.memory.kv_layout = "another";
  side.service->meet(other);
  EXPECT_NE(refusal(good, true).find("'another'"), std::string::npos);
  side.expect_sound(0);

  Side small(4, view_);
  small.reachable = &source;
  small.service->meet(source.introduction(4));
  ASSERT_TRUE(small.service->borrow({7, 4, kTrunkRoot, trunk_, {}}));
  ASSERT_TRUE(small.service->lent(good));
  ASSERT_TRUE(small.service->poll());
  EXPECT_NE(std::get<RestoreDoneFrame>(small.sent().at(0)).error.find("no room for a restore"),
            std::string::npos);
  small.expect_sound(0);

  // The same of blocks that are named beforehand, at once.
  const auto refused_at_once = [&](Side& target, const std::vector<BlockId>& blocks) {
    EXPECT_TRUE(target.service->borrow({7, 4, kTrunkRoot, trunk_, blocks}));
    EXPECT_FALSE(target.service->busy());
    return std::get<RestoreDoneFrame>(target.sent().at(0)).error;
  };
  side.service->meet(source.introduction(4));
  EXPECT_NE(refused_at_once(side, {0, 1, 2, 3, 5}).find("block 5 of"), std::string::npos);
  EXPECT_NE(refused_at_once(side, {0, 1}).find("2 blocks are lent for 5"), std::string::npos);
  side.pipeline.refusal = make_error(Errc::kIo, "no copy today");
  EXPECT_NE(refused_at_once(side, good.blocks).find("no copy today"), std::string::npos);
  side.expect_sound(0);
  EXPECT_NE(refused_at_once(small, good.blocks).find("no room"), std::string::npos);
  small.expect_sound(0);
}

TEST_F(SnapshotServiceTest, PartsAreToldAndRestoredAsTheyCome) {
  kvsnap::Manifest manifest = lease(trunk_);
  // The same place as five extents.
  const kvsnap::Extent whole = manifest.extents.at(0);
  manifest.extents.clear();
  for (std::uint64_t i = 0; i < 5; ++i)
    manifest.extents.push_back({whole.offset + i * kBlockBytes, kBlockBytes, 0});
  Side source(5, view_);
  source.fill(trunk_);
  source.sent();
  source.pipeline.finished = false;
  ASSERT_TRUE(source.service->snapshot({1, manifest, true}));
  std::vector<SnapshotPartFrame> parts;
  for (const std::size_t told : {2U, 2U, 3U}) {
    source.pipeline.num_checked = told;
    ASSERT_TRUE(source.service->poll());
    for (const Frame& frame : source.sent())
      parts.push_back(std::get<SnapshotPartFrame>(frame));
  }
  ASSERT_EQ(parts.size(), 2U);
  EXPECT_EQ(parts[0].crc32c.size(), 2U);
  EXPECT_EQ(parts[1].first_extent, 2U);
  source.pipeline.finished = true;
  ASSERT_TRUE(source.service->poll());
  const auto done = std::get<SnapshotDoneFrame>(source.sent().at(0));

  const auto crc = [&](std::size_t i) { return done.crc32c.at(i); };
  EXPECT_EQ(parts[1].crc32c, std::vector{crc(2)});
  const auto begin = [&](Side& side) {
    RestoreFrame restore{3, manifest, 2};
    restore.manifest.extents[0].crc32c = crc(0);
    restore.manifest.extents[1].crc32c = crc(1);
    EXPECT_TRUE(side.service->restore(restore));
    EXPECT_TRUE(side.service->poll());
    EXPECT_EQ(kinds(side.sent()), "");
    EXPECT_TRUE(side.service->busy());
  };
  {
    Side side(8, view_);
    begin(side);
    EXPECT_TRUE(side.service->arrive({9, 2, {crc(2)}, ""}));  // somebody else's
    EXPECT_TRUE(side.service->arrive({3, 2, {crc(2)}, ""}));
    EXPECT_TRUE(side.service->poll());
    EXPECT_EQ(kinds(side.sent()), "");
    EXPECT_TRUE(side.service->arrive({3, 3, {crc(3), crc(4)}, ""}));
    EXPECT_TRUE(side.service->poll());
    EXPECT_EQ(kinds(side.sent()), "restore_done publish ");
    EXPECT_TRUE(side.holds(trunk_));
    side.expect_sound(5);
  }
  const ArriveFrame wrong[] = {{3, 3, {crc(3)}, ""},
                               {3, 2, {crc(2), crc(3), crc(4), 0}, ""},
                               {3, 2, {crc(2), crc(3), crc(4) ^ 1}, ""},
                               {3, 0, {}, "the source is gone"}};
  for (const ArriveFrame& frame : wrong) {
    Side side(8, view_);
    begin(side);
    EXPECT_TRUE(side.service->arrive(frame));
    EXPECT_TRUE(side.service->poll());
    const auto frames = side.sent();
    ASSERT_EQ(kinds(frames), "restore_done ");
    EXPECT_NE(std::get<RestoreDoneFrame>(frames[0]).error, "");
    EXPECT_FALSE(side.service->busy());
    side.expect_sound(0);
  }
}

// The device may still write into extents and blocks, so that nobody may be told that they are
// free.
TEST_F(SnapshotServiceTest, ALostDeviceEndsTheProcessAndReportsNothing) {
  const kvsnap::Manifest manifest = snapshot_of(trunk_);
  for (const Errc code : {Errc::kCuda, Errc::kDeadlineExceeded}) {
    Side side(10, view_);
    side.fill(tokens_from(500, 2));
    side.sent();
    side.pipeline.failure = make_error(code, "lost");
    EXPECT_TRUE(side.service->restore({3, manifest}));
    EXPECT_EQ(side.service->poll().error().code, code);
    EXPECT_EQ(kinds(side.sent()), "");
    Side other(10, view_);
    other.fill(trunk_);
    other.sent();
    other.pipeline.failure = make_error(code, "lost");
    EXPECT_TRUE(other.service->snapshot({1, lease(trunk_)}));
    EXPECT_EQ(other.service->poll().error().code, code);
    EXPECT_EQ(kinds(other.sent()), "");
  }
}

}  // namespace
}  // namespace thaw::forkpool::worker
