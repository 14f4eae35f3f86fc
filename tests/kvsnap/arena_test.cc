#include "kvsnap/arena.h"

#include <sys/stat.h>

#include <map>
#include <random>
#include <set>
#include <vector>

#include <gtest/gtest.h>

namespace thaw::kvsnap {
namespace {

constexpr std::uint64_t kBlock = 4096;
constexpr Holder kFirst{0, 0};
constexpr Holder kSecond{0, 1};

Manifest manifest_for(const WriteLease& lease, std::uint64_t block_bytes = kBlock) {
  Manifest manifest;
  manifest.kv_layout = "test";
  manifest.block_size = 16;
  manifest.block_bytes = block_bytes;
  manifest.extents = lease.extents;
  manifest.token_ids.resize(manifest.payload_bytes() / block_bytes * 16);
  return manifest;
}

Arena make_arena(std::uint64_t num_blocks) {
  return std::move(Arena::create(num_blocks * kBlock)).value();
}

/// The lengths of its extents.
std::vector<std::uint64_t> blocks_of(const WriteLease& lease) {
  std::vector<std::uint64_t> blocks;
  for (const Extent& extent : lease.extents)
    blocks.push_back(extent.size_bytes / kBlock);
  return blocks;
}

SnapshotId publish_new(Arena& arena, std::uint64_t num_blocks,
                       std::optional<std::uint64_t> tokens_saved = std::nullopt,
                       Holder holder = kFirst) {
  const WriteLease lease = arena.lease_for_writing(holder, num_blocks, kBlock).value();
  return arena.publish(lease.id, holder, manifest_for(lease), tokens_saved).value();
}

TEST(Arena, DescribesItsPagesAndRefusesSizeZero) {
  const Arena arena = make_arena(512);
  EXPECT_NE(arena.description().find("2 MiB in"), std::string::npos) << arena.description();
  EXPECT_EQ(arena.size_bytes(), 512 * kBlock);
  EXPECT_EQ(Arena::create(0).error().code, Errc::kInvalidArgument);
}

TEST(Arena, WarmingTakesThePagesAndChangesNoByte) {
  const auto fd = std::move(create_memfd("warm", 1300 * 4096)).value();
  const auto mapping = std::move(map_fd(fd.get(), 1300 * 4096, MapAccess::kReadWrite)).value();
  for (std::size_t at = 0; at < mapping.size_bytes(); at += 9973)
    mapping.data()[at] = static_cast<std::byte>(at);
  PageWarmer warmer = std::move(PageWarmer::start(fd.get())).value();
  warmer.wait();
  struct stat info {};
  ASSERT_EQ(::fstat(fd.get(), &info), 0);
  EXPECT_GE(info.st_blocks * 512, 1300 * 4096);
  for (std::size_t at = 0; at < mapping.size_bytes(); at += 9973)
    ASSERT_EQ(mapping.data()[at], static_cast<std::byte>(at));
}

TEST(Arena, CanBeMovedAndDestroyedWhileItWarms) {
  Arena arena = make_arena(4096);
  ASSERT_TRUE(arena.warm_in_background());
  Arena moved = std::move(arena);
  EXPECT_NE(publish_new(moved, 3), 0U);
}

TEST(Arena, ALeaseIsCutWhereBlocksEndOnPages) {
  Arena arena = make_arena(8);
  const WriteLease lease = arena.lease_for_writing(kFirst, 5, kBlock, 2 * kBlock + 1).value();
  std::uint64_t next = lease.extents[0].offset;
  for (const Extent& extent : lease.extents) {
    EXPECT_EQ(extent.offset, next);
    next += extent.size_bytes;
  }
  EXPECT_EQ(blocks_of(lease), (std::vector<std::uint64_t>{1, 2, 1, 1}));
  const SnapshotId snapshot = arena.publish(lease.id, kFirst, manifest_for(lease)).value();
  EXPECT_TRUE(arena.check_integrity());
  arena.remove(snapshot);
  EXPECT_EQ(arena.used_bytes(), 0U);
  EXPECT_TRUE(arena.check_integrity());
  // Blocks that end on no page before the limit stay together.
  const WriteLease odd = arena.lease_for_writing(kFirst, 5, 3000, 8192).value();
  EXPECT_EQ(odd.extents.size(), 1U);
  arena.abandon(odd.id, kFirst);
  EXPECT_EQ(arena.used_bytes(), 0U);
}

TEST(Arena, TheFirstAndTheLastPieceAreShort) {
  for (const auto& [num_blocks, pieces] :
       std::map<std::uint64_t, std::vector<std::uint64_t>>{{1, {1}},
                                                           {2, {2}},
                                                           {3, {2, 1}},
                                                           {8, {2, 4, 2}},
                                                           {20, {2, 8, 8, 2}},
                                                           {23, {2, 8, 8, 3, 2}}}) {
    Arena arena = make_arena(num_blocks);
    const WriteLease lease =
        arena.lease_for_writing(kFirst, num_blocks, kBlock, 8 * kBlock).value();
    EXPECT_EQ(blocks_of(lease), pieces);
  }
}

TEST(Arena, WriteLeaseIsInvisibleUntilPublished) {
  Arena arena = make_arena(8);
  const WriteLease lease = arena.lease_for_writing(kFirst, 3, kBlock).value();
  EXPECT_EQ(arena.num_snapshots(), 0U);
  EXPECT_EQ(arena.used_bytes(), 3 * kBlock);
  const SnapshotId id = arena.publish(lease.id, kFirst, manifest_for(lease)).value();
  ASSERT_NE(arena.find(id), nullptr);
  EXPECT_EQ(arena.find(id)->token_ids.size(), 48U);
  EXPECT_EQ(arena.num_leases(), 0U);
  arena.remove(id);
  EXPECT_EQ(arena.find(id), nullptr);
  EXPECT_EQ(arena.used_bytes(), 0U);
  EXPECT_TRUE(arena.check_integrity());
}

TEST(Arena, PublishBelievesNothing) {
  Arena arena = make_arena(8);
  const WriteLease lease = arena.lease_for_writing(kFirst, 3, kBlock).value();
  Manifest good = manifest_for(lease);
  const auto refused = [&](Manifest manifest, Holder holder = kFirst) {
    const auto result = arena.publish(lease.id, holder, std::move(manifest));
    return !result.has_value() && arena.num_snapshots() == 0 && arena.num_leases() == 1;
  };
  EXPECT_TRUE(refused(good, kSecond));
  EXPECT_TRUE(refused(good, Holder{1, 0}));
  Manifest bad = good;
  bad.extents[0].offset += kBlock;
  EXPECT_TRUE(refused(bad));
  bad = good;
  bad.extents[0].size_bytes += kBlock;
  EXPECT_TRUE(refused(bad));
  bad = good;
  bad.extents.clear();
  EXPECT_TRUE(refused(bad));
  bad = good;
  bad.token_ids.resize(32);
  EXPECT_TRUE(refused(bad));
  bad = good;
  bad.block_size = 0;
  EXPECT_TRUE(refused(bad));
  bad = good;
  bad.block_bytes = 0;
  EXPECT_TRUE(refused(bad));
  EXPECT_TRUE(arena.publish(lease.id, kFirst, good));
  EXPECT_EQ(arena.publish(lease.id, kFirst, good).error().code, Errc::kNotFound);
}

TEST(Arena, AbandonFreesTheExtents) {
  Arena arena = make_arena(4);
  const WriteLease lease = arena.lease_for_writing(kFirst, 4, kBlock).value();
  arena.abandon(lease.id, kSecond);  // not its lease
  EXPECT_EQ(arena.used_bytes(), 4 * kBlock);
  arena.abandon(lease.id, kFirst);
  EXPECT_EQ(arena.used_bytes(), 0U);
  arena.abandon(lease.id, kFirst);
  EXPECT_TRUE(arena.check_integrity());
}

TEST(Arena, ReadLeaseHoldsBytesOfARemovedSnapshot) {
  Arena arena = make_arena(4);
  const SnapshotId id = publish_new(arena, 4);
  const ReadLease a = arena.lease_for_reading(id, kFirst).value();
  const ReadLease b = arena.lease_for_reading(id, Holder{1, 0}).value();
  EXPECT_EQ(a.manifest.extents.size(), 1U);
  arena.remove(id);
  EXPECT_EQ(arena.find(id), nullptr);
  EXPECT_EQ(arena.lease_for_reading(id, kFirst).error().code, Errc::kNotFound);
  EXPECT_EQ(arena.lease_for_writing(kFirst, 1, kBlock).error().code, Errc::kResourceExhausted);
  arena.end_reading(a.id);
  EXPECT_EQ(arena.used_bytes(), 4 * kBlock);
  arena.end_reading(a.id);  // twice does not count twice
  EXPECT_EQ(arena.used_bytes(), 4 * kBlock);
  arena.end_reading(b.id);
  EXPECT_EQ(arena.used_bytes(), 0U);
  EXPECT_TRUE(arena.lease_for_writing(kFirst, 4, kBlock));
}

TEST(Arena, DeadWorkersExtentsWaitForItsExit) {
  Arena arena = make_arena(4);
  const WriteLease old = arena.lease_for_writing(kFirst, 2, kBlock).value();
  // The successor runs already, the old process may still write.
  const WriteLease fresh = arena.lease_for_writing(kSecond, 1, kBlock).value();
  EXPECT_EQ(arena.used_bytes(), 3 * kBlock);
  arena.worker_exited(kFirst);
  EXPECT_EQ(arena.used_bytes(), kBlock);
  // What the dead generation still says is ignored, also once its extents belong to another.
  const WriteLease other = arena.lease_for_writing(Holder{1, 0}, 2, kBlock).value();
  EXPECT_EQ(other.extents[0].offset, old.extents[0].offset);
  EXPECT_EQ(arena.publish(old.id, kFirst, manifest_for(old)).error().code, Errc::kNotFound);
  arena.abandon(old.id, kFirst);
  EXPECT_EQ(arena.used_bytes(), 3 * kBlock);
  EXPECT_EQ(arena.lease_for_writing(kFirst, 1, kBlock).error().code, Errc::kUnavailable);
  EXPECT_TRUE(arena.publish(fresh.id, kSecond, manifest_for(fresh)));
  arena.worker_exited(kFirst);  // late and again: the successor is untouched
  EXPECT_EQ(arena.num_snapshots(), 1U);
  EXPECT_TRUE(arena.check_integrity());
}

TEST(Arena, DeadReadersLeasesEnd) {
  Arena arena = make_arena(4);
  const SnapshotId id = publish_new(arena, 4);
  const ReadLease lease = arena.lease_for_reading(id, Holder{1, 3}).value();
  arena.remove(id);
  arena.worker_exited({1, 2});
  EXPECT_EQ(arena.used_bytes(), 4 * kBlock);
  arena.worker_exited({1, 3});
  EXPECT_EQ(arena.used_bytes(), 0U);
  arena.end_reading(lease.id);
  EXPECT_EQ(arena.lease_for_reading(id, Holder{1, 3}).error().code, Errc::kUnavailable);
  EXPECT_TRUE(arena.check_integrity());
}

TEST(Arena, PublishedSnapshotsOutliveTheirWriter) {
  Arena arena = make_arena(4);
  const SnapshotId id = publish_new(arena, 2);
  arena.worker_exited(kFirst);
  EXPECT_NE(arena.find(id), nullptr);
}

TEST(Arena, EvictsByBytesPerTokenSavedThenByUse) {
  Arena arena = make_arena(4);
  std::vector<SnapshotId> evicted;
  arena.set_eviction_listener([&](SnapshotId id, const Manifest& manifest) {
    evicted.push_back(id);
    EXPECT_EQ(manifest.extents.size(), 1U);
  });
  const SnapshotId dear = publish_new(arena, 1, 4);  // saves little for its bytes
  const SnapshotId a = publish_new(arena, 1);
  const SnapshotId b = publish_new(arena, 1);
  const SnapshotId c = publish_new(arena, 1);
  arena.end_reading(arena.lease_for_reading(a, kFirst).value().id);  // used after b and c
  arena.pin(c);
  const WriteLease lease = arena.lease_for_writing(kFirst, 2, kBlock).value();
  EXPECT_EQ(evicted, (std::vector<SnapshotId>{dear, b}));
  EXPECT_EQ(arena.find(b), nullptr);
  // c is pinned, a is free to go: two more blocks cannot be had, so a stays.
  EXPECT_EQ(arena.lease_for_writing(kFirst, 2, kBlock).error().code, Errc::kResourceExhausted);
  EXPECT_NE(arena.find(a), nullptr);
  arena.unpin(c);
  EXPECT_TRUE(arena.lease_for_writing(kFirst, 2, kBlock));
  EXPECT_EQ(evicted.size(), 4U);
  EXPECT_EQ(arena.num_snapshots(), 0U);
  EXPECT_TRUE(arena.check_integrity());
}

TEST(Arena, NeverEvictsWhatIsBeingRead) {
  Arena arena = make_arena(2);
  const SnapshotId id = publish_new(arena, 2);
  const ReadLease lease = arena.lease_for_reading(id, kFirst).value();
  EXPECT_FALSE(arena.lease_for_writing(kFirst, 1, kBlock));
  EXPECT_NE(arena.find(id), nullptr);
  arena.end_reading(lease.id);
  EXPECT_TRUE(arena.lease_for_writing(kFirst, 1, kBlock));
  EXPECT_EQ(arena.find(id), nullptr);
}

TEST(Arena, RefusesSizesThatCannotBe) {
  Arena arena = make_arena(4);
  EXPECT_EQ(arena.lease_for_writing(kFirst, 0, kBlock).error().code, Errc::kInvalidArgument);
  EXPECT_EQ(arena.lease_for_writing(kFirst, 1, 0).error().code, Errc::kInvalidArgument);
  EXPECT_EQ(arena.lease_for_writing(kFirst, 5, kBlock).error().code, Errc::kResourceExhausted);
  EXPECT_EQ(arena.lease_for_writing(kFirst, ~std::uint64_t{0} / 2, kBlock).error().code,
            Errc::kResourceExhausted);
}

// Random lives of leases and snapshots; at every step each byte has one owner, and what somebody
// may still read or write is never handed out again.
TEST(Arena, RandomLifecyclesKeepEveryByteOwnedOnce) {
  for (unsigned seed = 1; seed <= 30; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937 random(seed);
    Arena arena = make_arena(64);
    std::map<LeaseId, std::pair<Holder, WriteLease>> writing;
    std::map<LeaseId, std::pair<Holder, ReadLease>> reading;
    std::map<LeaseId, std::uint64_t> block_bytes;
    std::vector<SnapshotId> published;
    std::vector<std::uint32_t> generation(3, 0);
    const auto any = [&](auto& map) { return std::next(map.begin(), random() % map.size()); };
    for (int step = 0; step < 300; ++step) {
      const std::uint32_t worker = random() % 3;
      const Holder holder{worker, generation[worker]};
      switch (random() % 8) {
        case 0:
        case 1:
        case 2: {
          const std::uint64_t size = 1 + random() % 9000;
          if (auto lease = arena.lease_for_writing(holder, 1 + random() % 20, size)) {
            writing.emplace(lease->id, std::pair(holder, *lease));
            block_bytes.emplace(lease->id, size);
          }
          break;
        }
        case 3:
          if (!writing.empty()) {
            const auto lease = any(writing);
            Manifest manifest = manifest_for(lease->second.second, block_bytes[lease->first]);
            published.push_back(
                arena.publish(lease->first, lease->second.first, manifest, 1 + random() % 1000)
                    .value());
            writing.erase(lease);
          }
          break;
        case 4:
          if (!writing.empty()) {
            const auto lease = any(writing);
            arena.abandon(lease->first, lease->second.first);
            writing.erase(lease);
          }
          break;
        case 5:
          if (!published.empty()) {
            const SnapshotId id = published[random() % published.size()];
            if (auto lease = arena.lease_for_reading(id, holder))
              reading.emplace(lease->id, std::pair(holder, *lease));
          }
          break;
        case 6:
          if (!reading.empty()) {
            const auto lease = any(reading);
            arena.end_reading(lease->first);
            reading.erase(lease);
          } else if (!published.empty()) {
            arena.remove(published[random() % published.size()]);
          }
          break;
        default:
          if (random() % 8 == 0) {
            arena.worker_exited(holder);
            ++generation[worker];
            std::erase_if(writing, [&](auto& entry) { return entry.second.first == holder; });
            std::erase_if(reading, [&](auto& entry) { return entry.second.first == holder; });
          }
      }
      const auto sound = arena.check_integrity();
      ASSERT_TRUE(sound) << sound.error().message;
      ASSERT_EQ(arena.num_leases(), writing.size() + reading.size());
      std::map<std::uint64_t, std::uint64_t> owned;  // writers' and readers' bytes, by offset
      for (const auto& [id, entry] : writing)
        for (const Extent& extent : entry.second.extents)
          ASSERT_TRUE(owned.emplace(extent.offset, extent.offset + extent.size_bytes).second);
      for (const auto& [id, entry] : reading)
        for (const Extent& extent : entry.second.manifest.extents)
          owned.emplace(extent.offset, extent.offset + extent.size_bytes);
      std::uint64_t end = 0;
      for (const auto& [begin, stop] : owned) {
        ASSERT_GE(begin, end);
        end = stop;
      }
    }
    for (const auto& [id, entry] : writing)
      arena.abandon(id, entry.first);
    for (const auto& [id, entry] : reading)
      arena.end_reading(id);
    for (SnapshotId id : published)
      arena.remove(id);
    ASSERT_EQ(arena.used_bytes(), 0U);
    ASSERT_EQ(arena.num_leases(), 0U);
  }
}

}  // namespace
}  // namespace thaw::kvsnap
