#include "engine/kv/radix_index.h"

#include <algorithm>
#include <numeric>

#include <gtest/gtest.h>

#include "engine/base/error.h"
#include "engine/base/hash.h"

namespace thaw::kv {
namespace {

const Hash128 kRoot = hash_text("root");

std::vector<TokenId> iota(TokenId first, std::size_t count) {
  std::vector<TokenId> tokens(count);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

class RadixIndexTest : public ::testing::Test {
 protected:
  // Publishes `tokens` in fresh blocks and gives up the references, as a finished sequence does.
  std::vector<BlockId> publish(const std::vector<TokenId>& tokens, const Hash128& root = kRoot) {
    std::vector<BlockId> blocks;
    for (std::size_t i = 0; i < tokens.size(); i += kBlockSize)
      blocks.push_back(pool_.allocate());
    index_.insert(root, tokens, blocks);
    for (BlockId block : blocks)
      pool_.release(block);
    return blocks;
  }

  void TearDown() override {
    const auto checked = index_.check_integrity();
    EXPECT_TRUE(checked) << checked.error().message;
  }

  BlockPool pool_{16};
  std::vector<BlockEntry> published_;
  std::vector<std::pair<Hash128, BlockId>> evicted_;
  RadixIndex index_{
      pool_,
      {[this](const auto& block) { published_.push_back(block); },
       [this](const Hash128& hash, BlockId block) { evicted_.emplace_back(hash, block); }}};
};

TEST_F(RadixIndexTest, MatchesNothingWhenEmpty) {
  const auto match = index_.match(kRoot, iota(0, 20));
  EXPECT_EQ(match.num_tokens, 0U);
  EXPECT_EQ(match.node, nullptr);
  EXPECT_FALSE(index_.lock(match));
}

TEST_F(RadixIndexTest, NamesThatAreKnownAreTheNamesOfTheBlocks) {
  const auto tokens = iota(0, 40);
  std::vector<Hash128> names;
  for (const std::size_t block : {0, 1}) {
    names.push_back(chain_block_hash(block == 0 ? kRoot : names.back(),
                                     std::span(tokens).subspan(block * kBlockSize, kBlockSize)));
  }
  std::vector<BlockId> blocks = {pool_.allocate(), pool_.allocate(), pool_.allocate()};
  index_.insert(kRoot, tokens, blocks, names);  // the third is partial, and has no name
  for (const BlockId block : blocks)
    pool_.release(block);
  ASSERT_EQ(published_.size(), 2U);
  publish(iota(0, 64));  // goes on from them, by names of its own
  ASSERT_EQ(published_.size(), 4U);
  EXPECT_EQ(published_[1].hash, names[1]);
  EXPECT_EQ(published_[2].parent, names[1]);
  EXPECT_EQ(published_[2].hash, chain_block_hash(names[1], iota(32, kBlockSize)));
}

TEST_F(RadixIndexTest, MatchesTokenByToken) {
  const auto tokens = iota(0, 40);
  const auto blocks = publish(tokens);
  for (std::size_t n = 0; n <= 40; ++n) {
    auto query = iota(0, n);
    query.push_back(999);
    const auto match = index_.match(kRoot, query);
    EXPECT_EQ(match.num_tokens, n);
    EXPECT_EQ(match.full_blocks.size(), n / kBlockSize);
    EXPECT_EQ(match.partial_block, n % kBlockSize == 0 ? -1 : blocks[n / kBlockSize]) << n;
  }
}

TEST_F(RadixIndexTest, RootsShareNothing) {
  publish(iota(0, 32));
  EXPECT_EQ(index_.match(hash_text("other"), iota(0, 32)).num_tokens, 0U);
}

TEST_F(RadixIndexTest, PublishesFullBlocksOnceWithChainedHashes) {
  const auto tokens = iota(0, 40);
  const auto blocks = publish(tokens);
  publish(tokens);
  ASSERT_EQ(published_.size(), 2U);
  EXPECT_EQ(published_[0].parent, kRoot);
  EXPECT_EQ(published_[0].hash, chain_block_hash(kRoot, iota(0, 16)));
  EXPECT_EQ(published_[1].parent, published_[0].hash);
  EXPECT_EQ(published_[1].block, blocks[1]);
  EXPECT_EQ(published_[1].tokens, to_block_tokens(iota(16, 16)));
  EXPECT_EQ(published_[1].root, kRoot);
  EXPECT_EQ(index_.num_blocks(), 3U);
}

TEST_F(RadixIndexTest, PartialNodeGrowsInPlace) {
  std::vector<BlockId> blocks{pool_.allocate()};
  auto handle = index_.insert(kRoot, iota(0, 5), blocks);
  publish({0, 1, 2, 3, 4, 7});  // another writer, which sorts behind
  handle = index_.insert(kRoot, iota(0, 9), blocks);
  handle = index_.insert(kRoot, iota(0, 16), blocks);
  EXPECT_EQ(index_.match(kRoot, iota(0, 30)).full_blocks, blocks);
  EXPECT_EQ(published_.size(), 1U);
  EXPECT_EQ(index_.num_blocks(), 2U);
  EXPECT_EQ(index_.match(kRoot, std::vector<TokenId>{0, 1, 2, 3, 4, 7, 8}).num_tokens, 6U);
  pool_.release(blocks[0]);
}

TEST_F(RadixIndexTest, HoldsEqualBlocksOnce) {
  const auto first = publish(iota(0, 20));
  std::vector<BlockId> own{pool_.allocate(), pool_.allocate()};
  const BlockId given_up = own[0];
  const BlockId kept = own[1];
  auto handle = index_.insert(kRoot, iota(0, 20), own);
  EXPECT_EQ(own, (std::vector{first[0], kept}));
  EXPECT_TRUE(pool_.is_free(given_up));
  EXPECT_EQ(pool_.references(first[0]), 2);
  // The handle does not keep the other's partial block.
  EXPECT_EQ(index_.num_evictable(), 1U);
  // What goes on from there hangs below the first writer's block.
  handle = index_.insert(kRoot, iota(0, 21), own);
  EXPECT_EQ(pool_.references(kept), 2);
  EXPECT_EQ(index_.match(kRoot, iota(0, 30)).num_tokens, 21U);
  for (BlockId block : own)
    pool_.release(block);
}

TEST_F(RadixIndexTest, DropsAPartialNodeThatAnotherCovers) {
  std::vector<BlockId> own{pool_.allocate()};
  index_.insert(kRoot, iota(0, 3), own);
  const auto other = publish(iota(0, 8));
  EXPECT_FALSE(index_.insert(kRoot, iota(0, 6), own));
  EXPECT_EQ(index_.num_blocks(), 1U);
  EXPECT_EQ(pool_.references(own[0]), 1);
  EXPECT_EQ(index_.match(kRoot, iota(0, 9)).partial_block, other[0]);
  pool_.release(own[0]);
}

// What find_cold_path() says comes first in evict().
TEST_F(RadixIndexTest, AColdPathIsWhatEvictTakesNext) {
  const auto nothing_kept = [](const Hash128&) { return false; };
  EXPECT_FALSE(index_.find_cold_path(16, 1, nothing_kept));
  publish(iota(0, 40));  // two whole blocks, and a part of one
  publish(iota(100, 48));
  const auto path = index_.find_cold_path(3, 2, nothing_kept);
  ASSERT_TRUE(path);
  EXPECT_EQ(path->root, kRoot);
  EXPECT_EQ(path->tokens, iota(0, 32));
  EXPECT_EQ(path->num_to_lose, 2U);
  ASSERT_EQ(path->hashes.size(), 2U);
  EXPECT_EQ(path->hashes[1], published_[1].hash);
  // Too short, or not yet within reach.
  EXPECT_FALSE(index_.find_cold_path(3, 3, nothing_kept));
  EXPECT_FALSE(index_.find_cold_path(0, 1, nothing_kept));
  const auto longer = index_.find_cold_path(16, 3, nothing_kept);
  ASSERT_TRUE(longer);
  EXPECT_EQ(longer->tokens, iota(100, 48));
  index_.evict(pool_.num_free() + 3);
  ASSERT_EQ(evicted_.size(), 2U);
  EXPECT_EQ(evicted_[0].first, path->hashes[1]);
  EXPECT_EQ(evicted_[1].first, path->hashes[0]);
}

TEST_F(RadixIndexTest, AColdPathStopsAtWhatIsKept) {
  auto branch = [](TokenId first) {
    auto tokens = iota(0, 32);  // their trunk
    const auto own = iota(first, 16);
    tokens.insert(tokens.end(), own.begin(), own.end());
    return tokens;
  };
  publish(branch(500));
  publish(branch(600));
  std::vector<Hash128> kept;
  const auto is_kept = [&](const Hash128& hash) {
    return std::ranges::find(kept, hash) != kept.end();
  };
  auto path = index_.find_cold_path(16, 2, is_kept);
  ASSERT_TRUE(path);
  EXPECT_EQ(path->tokens, branch(500));
  EXPECT_EQ(path->num_to_lose, 3U);
  kept = path->hashes;  // with the trunk: of the other branch a block is left
  EXPECT_FALSE(index_.find_cold_path(16, 2, is_kept));
  path = index_.find_cold_path(16, 1, is_kept);
  ASSERT_TRUE(path);
  EXPECT_EQ(path->tokens, branch(600));
  EXPECT_EQ(path->num_to_lose, 1U);
  // What someone uses is not cold, nor is what it needs.
  kept.clear();
  const auto lock = index_.lock(index_.match(kRoot, branch(600)));
  path = index_.find_cold_path(16, 1, is_kept);
  ASSERT_TRUE(path);
  EXPECT_EQ(path->tokens, branch(500));
}

TEST_F(RadixIndexTest, ALockInPlaceIsNoUse) {
  const auto old = publish(iota(0, 16));
  publish(iota(100, 16));
  {
    const auto lock = index_.lock_in_place(index_.match(kRoot, iota(0, 16)));
    EXPECT_EQ(index_.evict(pool_.num_free() + 2), 1U);  // the other one alone
  }
  publish(iota(200, 16));
  index_.evict(pool_.num_free() + 1);
  ASSERT_EQ(evicted_.size(), 2U);
  EXPECT_EQ(evicted_[1].second, old[0]);
}

TEST_F(RadixIndexTest, EvictsLeastRecentlyUsedFromTheTail) {
  const auto old = publish(iota(0, 48));
  const auto recent = publish(iota(100, 32));
  index_.lock(index_.match(kRoot, iota(0, 16)));  // used, but only its first block
  EXPECT_EQ(index_.evict(pool_.num_free() + 2), 2U);
  EXPECT_EQ(index_.match(kRoot, iota(0, 48)).full_blocks, (std::vector{old[0]}));
  EXPECT_EQ(index_.match(kRoot, iota(100, 32)).num_tokens, 32U);
  ASSERT_EQ(evicted_.size(), 2U);
  EXPECT_EQ(evicted_[0].second, old[2]);
  EXPECT_EQ(evicted_[1].second, old[1]);
  EXPECT_EQ(index_.evict(pool_.num_free() + 1), 1U);
  EXPECT_EQ(evicted_[2].second, recent[1]);
}

TEST_F(RadixIndexTest, HandleKeepsAPathAndOnlyThat) {
  publish(iota(0, 48));
  publish(iota(100, 48));
  auto handle = index_.lock(index_.match(kRoot, iota(0, 33)));
  EXPECT_EQ(index_.num_evictable(), 3U);
  EXPECT_EQ(index_.evict(16), 3U);
  EXPECT_EQ(index_.match(kRoot, iota(0, 48)).num_tokens, 48U);
  auto moved = std::move(handle);
  EXPECT_EQ(index_.evict(16), 0U);
  moved = {};
  EXPECT_EQ(index_.num_evictable(), 3U);
  EXPECT_EQ(index_.evict(16), 3U);
  EXPECT_EQ(pool_.num_free(), 16U);
}

TEST_F(RadixIndexTest, EvictionFreesNothingThatASequenceHolds) {
  std::vector<BlockId> blocks{pool_.allocate()};
  index_.insert(kRoot, iota(0, 16), blocks);
  EXPECT_EQ(index_.evict(16), 0U);
  EXPECT_EQ(index_.num_blocks(), 0U);
  EXPECT_EQ(pool_.num_free(), 15U);
  pool_.release(blocks[0]);
}

TEST_F(RadixIndexTest, AdoptsWhatAFormerWorkerPublished) {
  publish(iota(0, 48));
  publish(iota(100, 32));
  auto entries = published_;
  entries.erase(entries.begin() + 3);  // the first block of the second path
  entries.erase(entries.begin() + 3);
  entries.push_back(published_[4]);  // its child: the parent is missing

  BlockPool pool(16);
  std::size_t reported = 0;
  RadixIndex index(pool, {[&](const auto&) { ++reported; }, {}});
  EXPECT_EQ(index.adopt(entries), 3U);
  EXPECT_EQ(reported, 0U);
  EXPECT_EQ(pool.num_free(), 13U);
  EXPECT_EQ(index.match(kRoot, iota(0, 60)).num_tokens, 48U);
  EXPECT_EQ(index.match(kRoot, iota(100, 60)).num_tokens, 0U);
  EXPECT_EQ(index.adopt(entries), 0U);  // their blocks are taken
  const auto checked = index.check_integrity();
  EXPECT_TRUE(checked) << checked.error().message;
  EXPECT_EQ(index.evict(16), 3U);
}

TEST_F(RadixIndexTest, AdoptRefusesBlocksOutsideThePool) {
  BlockEntry entry{kRoot, kRoot, chain_block_hash(kRoot, iota(0, 16)), 16,
                   to_block_tokens(iota(0, 16))};
  EXPECT_EQ(index_.adopt(std::vector{entry}), 0U);
  entry.block = -1;
  EXPECT_EQ(index_.adopt(std::vector{entry}), 0U);
}

TEST_F(RadixIndexTest, RefusesBlocksThatDoNotCoverOrStandTwice) {
  std::vector<BlockId> blocks{pool_.allocate()};
  EXPECT_THROW(index_.insert(kRoot, iota(0, 17), blocks), Exception);
  index_.insert(kRoot, iota(0, 16), blocks);
  EXPECT_THROW(index_.insert(kRoot, iota(50, 16), blocks), Exception);
  pool_.release(blocks[0]);
}

}  // namespace
}  // namespace thaw::kv
