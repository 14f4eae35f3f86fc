#include "forkpool/transfers.h"

#include <optional>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "engine/base/hash.h"

namespace thaw::forkpool {
namespace {

constexpr std::uint64_t kBlockBytes = 4096;
constexpr std::size_t kSentBlocks = 6;

// Worker 0 writes a snapshot of a prefix, part by part, and worker 1 restores it. Nobody answers
// but the test.
class TransfersTest : public ::testing::Test {
 protected:
  TransfersTest() {
    for (std::size_t i = 0; i < kSentBlocks * kBlockSize; ++i)
      prompt_.push_back(static_cast<TokenId>(i));
    transfers_.part_bytes = 4 * kBlockBytes;  // extents of 1, 4 and 1 blocks
  }

  /// Until the target has restored all of it.
  void restore_all() {
    PrefixNames names(root_, prompt_);
    transfers_.start({{0, 1}, "layout", kBlockBytes}, {{1, 1}, "layout", kBlockBytes}, names,
                     kSentBlocks, std::chrono::milliseconds(10000),
                     [this](Result<std::uint32_t> tokens) { done_ = std::move(tokens); });
    const auto snapshot = std::get<SnapshotFrame>(sent(0));
    manifest_ = snapshot.manifest;
    write_id_ = snapshot.id;
    ASSERT_EQ(manifest_.extents.size(), 3U);
    transfers_.on_snapshot_part(0, {write_id_, 0, {1}});
    restore_id_ = std::get<RestoreFrame>(sent(1)).id;
    transfers_.on_snapshot_part(0, {write_id_, 1, {2, 3}});
    EXPECT_EQ(std::get<ArriveFrame>(sent(1)).crc32c, (std::vector<std::uint32_t>{2, 3}));
    transfers_.on_restore_done(1, {restore_id_, "", static_cast<std::uint32_t>(prompt_.size())});
  }
  Frame sent(std::uint32_t worker) {
    EXPECT_EQ(frames_.size(), 1U);
    EXPECT_EQ(frames_.at(0).first, worker);
    return std::exchange(frames_, {}).at(0).second;
  }

  const Hash128 root_ = hash_text("root");
  std::vector<TokenId> prompt_;
  std::vector<std::pair<std::uint32_t, Frame>> frames_;
  std::optional<Result<std::uint32_t>> done_;
  kvsnap::Manifest manifest_;
  std::uint64_t write_id_ = 0;
  std::uint64_t restore_id_ = 0;
  Loop loop_;
  kvsnap::Arena arena_ = kvsnap::Arena::create(kSentBlocks * kBlockBytes).value();
  TrunkIndex trunks_;
  Transfers transfers_{loop_, &arena_, trunks_, [this](std::uint32_t worker, const Frame& frame) {
                         frames_.emplace_back(worker, frame);
                       }};
};

TEST_F(TransfersTest, ATargetThatIsAheadOfTheSourceWaitsForTheSnapshot) {
  restore_all();
  EXPECT_FALSE(done_);
  transfers_.on_snapshot_done(0, {write_id_, "", manifest_});
  ASSERT_TRUE(done_);
  EXPECT_EQ(done_->value(), prompt_.size());
  EXPECT_EQ(transfers_.num_snapshots(), 1U);
  EXPECT_EQ(trunks_.size(), 1U);
  EXPECT_TRUE(frames_.empty());
  arena_.remove(trunks_.trunks().begin()->second.snapshot.value());
  EXPECT_EQ(arena_.used_bytes(), 0U);  // nobody reads it any more
}

TEST_F(TransfersTest, WhatHasBeenRestoredIsThereWhateverBecomesOfTheSnapshot) {
  for (const bool dies : {false, true}) {
    SCOPED_TRACE(dies);
    done_.reset();
    restore_all();
    if (dies)
      transfers_.on_exit({0, 1});
    else
      transfers_.on_snapshot_done(0, {write_id_, "no more", {}});
    ASSERT_TRUE(done_);
    EXPECT_EQ(done_->value(), prompt_.size());
    EXPECT_EQ(transfers_.num_snapshots(), 0U);
    EXPECT_EQ(arena_.used_bytes(), 0U);
    EXPECT_TRUE(frames_.empty());
  }
}

}  // namespace
}  // namespace thaw::forkpool
