#include "forkpool/worker/eviction_offers.h"

#include <numeric>

#include <gtest/gtest.h>

#include "engine/base/hash.h"

namespace thaw::forkpool::worker {
namespace {

const Hash128 kRoot = hash_text("root");
constexpr std::size_t kBlocks = 64;  // of which a quarter is 16

class EvictionOffersTest : public testing::Test {
 protected:
  // As a sequence that has finished leaves it.
  void publish(TokenId first, std::size_t num_tokens) {
    std::vector<TokenId> tokens(num_tokens);
    std::iota(tokens.begin(), tokens.end(), first);
    std::vector<BlockId> blocks;
    for (std::size_t at = 0; at < num_tokens; at += kBlockSize) {
      if (pool_.num_free() == 0) index_.evict(1);
      blocks.push_back(pool_.allocate());
    }
    index_.insert(kRoot, tokens, blocks);
    for (const BlockId block : blocks)
      pool_.release(block);
  }

  kv::BlockPool pool_{kBlocks};
  kv::RadixIndex index_{
      pool_,
      {[](const auto&) {}, [this](const Hash128& hash, BlockId) { offers_.on_evict(hash); }}};
  EvictionOffers offers_{pool_, index_, 5 * kBlockSize};
};

TEST_F(EvictionOffersTest, NothingWhileThereIsRoom) {
  publish(0, 48 * kBlockSize);
  EXPECT_FALSE(offers_.next());  // a quarter is free
  publish(5000, kBlockSize);
  EXPECT_TRUE(offers_.next());
}

TEST_F(EvictionOffersTest, EachTrunkOnceTheColdestFirst) {
  publish(0, 20 * kBlockSize + 3);
  publish(1000, 4 * kBlockSize);  // too short
  publish(2000, 20 * kBlockSize);
  publish(3000, 14 * kBlockSize);
  const auto first = offers_.next();
  ASSERT_TRUE(first);
  EXPECT_EQ(first->root, kRoot);
  EXPECT_EQ(first->token_ids.size(), 20U * kBlockSize);  // whole blocks
  EXPECT_EQ(first->token_ids.front(), 0);
  EXPECT_EQ(first->num_to_lose, 20U * kBlockSize);
  // The next quarter of the pool is of this one and nothing else.
  EXPECT_FALSE(offers_.next());
  publish(4000, 20 * kBlockSize);  // evicts it
  const auto second = offers_.next();
  ASSERT_TRUE(second);
  EXPECT_EQ(second->token_ids.front(), 2000);
  EXPECT_FALSE(offers_.next());
}

TEST_F(EvictionOffersTest, ATrunkThatCameBackIsOfferedAgain) {
  for (int round = 0; round < 2; ++round) {
    publish(0, 40 * kBlockSize);
    publish(1000, 20 * kBlockSize);
    const auto offer = offers_.next();
    ASSERT_TRUE(offer) << round;
    EXPECT_EQ(offer->token_ids.front(), 0);
    publish(2000, 60 * kBlockSize);  // everything else goes
  }
}

TEST_F(EvictionOffersTest, ABranchOfAnOfferedTrunkIsOfferedForItsOwnSake) {
  std::vector<TokenId> trunk(30 * kBlockSize);
  std::iota(trunk.begin(), trunk.end(), 0);
  const auto branch = [&](TokenId first, std::size_t blocks) {
    auto tokens = trunk;
    for (std::size_t i = 0; i < blocks * kBlockSize; ++i)
      tokens.push_back(first + static_cast<TokenId>(i));
    auto held = index_.match(kRoot, tokens).full_blocks;
    for (const BlockId block : held)
      pool_.add_reference(block);
    while (held.size() * kBlockSize < tokens.size())
      held.push_back(pool_.allocate());
    index_.insert(kRoot, tokens, held);
    for (const BlockId block : held)
      pool_.release(block);
  };
  branch(10000, 2);
  branch(20000, 2);
  branch(30000, 26);
  const auto first = offers_.next();
  ASSERT_TRUE(first);
  EXPECT_EQ(first->token_ids.size(), 32U * kBlockSize);
  // The second one's two blocks are not worth a snapshot; the third one's own are.
  const auto second = offers_.next();
  ASSERT_TRUE(second);
  EXPECT_EQ(second->token_ids.size(), 56U * kBlockSize);
  EXPECT_EQ(second->num_to_lose, 26U * kBlockSize);
  EXPECT_FALSE(offers_.next());
}

TEST_F(EvictionOffersTest, NoneWhereThePoolWantsNone) {
  EvictionOffers none(pool_, index_, 0);
  publish(0, 60 * kBlockSize);
  EXPECT_FALSE(none.next());
}

}  // namespace
}  // namespace thaw::forkpool::worker
