#include "forkpool/trunk_index.h"

#include <gtest/gtest.h>

#include "engine/base/hash.h"
#include "tests/forkpool/fake_tokens.h"

namespace thaw::forkpool {
namespace {

class TrunkIndexTest : public testing::Test {
 protected:
  TrunkId add(std::span<const TokenId> tokens, const Hash128& root, std::uint64_t bytes) {
    PrefixNames names(root, tokens);
    const TrunkId id = index.add(names, names.num_blocks(), bytes);
    index.find(id)->file = "file";
    return id;
  }
  std::optional<TrunkIndex::Found> longest(std::span<const TokenId> tokens, const Hash128& root,
                                           TrunkIndex::Reach reach = TrunkIndex::Reach::kHere) {
    PrefixNames names(root, tokens);
    return index.longest(names, reach);
  }

  TrunkIndex index;
  const Hash128 root = hash_text("ours");
  const Hash128 others = hash_text("theirs");
};

TEST_F(TrunkIndexTest, FindsTheLongestCommonPrefixInWholeBlocks) {
  const auto tokens = counted(100);
  const TrunkId id = add(std::span(tokens).first(64), root, 64);
  const auto found = longest(tokens, root);
  ASSERT_TRUE(found);
  EXPECT_EQ(found->id, id);
  EXPECT_EQ(found->num_tokens, 64U);
  EXPECT_EQ(longest(std::span(tokens).first(40), root)->num_tokens, 32U);
  EXPECT_FALSE(longest(std::span(tokens).first(15), root));
  EXPECT_FALSE(longest(std::span(tokens).subspan(16), root));
  EXPECT_FALSE(longest(tokens, others)) << "another owner's";
}

TEST_F(TrunkIndexTest, OfSeveralTakesTheSmallest) {
  const auto tokens = counted(96);
  add(tokens, root, 96);
  const TrunkId small = add(std::span(tokens).first(32), root, 32);
  EXPECT_EQ(longest(std::span(tokens).first(32), root)->id, small);
  EXPECT_EQ(longest(tokens, root)->num_tokens, 96U);
  index.remove(small);
  EXPECT_EQ(longest(std::span(tokens).first(32), root)->num_tokens, 32U) << "of the longer one";
}

TEST_F(TrunkIndexTest, WhatTheStoreHasIsFoundWhereItIsLookedFor) {
  const auto tokens = counted(96);
  const TrunkId here = add(std::span(tokens).first(32), root, 32);
  const TrunkId stored = add(tokens, root, 96);
  index.find(stored)->file.clear();
  index.find(stored)->object = "object";
  EXPECT_EQ(longest(tokens, root)->id, here);
  EXPECT_EQ(longest(tokens, root)->num_tokens, 32U);
  EXPECT_EQ(longest(tokens, root, TrunkIndex::Reach::kStore)->id, stored);
  EXPECT_EQ(longest(tokens, root, TrunkIndex::Reach::kStore)->num_tokens, 96U);
  // Of several that share as much the one that is here, though it is larger.
  const TrunkId large = add(tokens, others, 500);
  const TrunkId small = add(std::span(tokens).first(64), others, 64);
  index.find(small)->file.clear();
  index.find(small)->object = "object";
  EXPECT_EQ(longest(std::span(tokens).first(64), others, TrunkIndex::Reach::kStore)->id, large);
}

TEST_F(TrunkIndexTest, AddsEachTrunkOnce) {
  const auto tokens = counted(64);
  const TrunkId id = add(tokens, root, 64);
  EXPECT_EQ(add(tokens, root, 64), id);
  EXPECT_EQ(index.size(), 1U);
  index.remove(id);
  index.remove(id);
  EXPECT_EQ(index.size(), 0U);
  EXPECT_FALSE(longest(tokens, root));
  EXPECT_NE(add(tokens, root, 64), id) << "ids are not used twice";
}

TEST_F(TrunkIndexTest, TokensDecideNotNames) {
  const auto tokens = counted(32);
  const auto other = counted(32, 1000);
  PrefixNames names(root, tokens);
  std::vector<Hash128> same = {names.name(0), names.name(1)};
  PrefixNames forged(root, other, same);
  index.find(index.add(forged, 2, 32))->file = "file";
  EXPECT_FALSE(longest(tokens, root));
}

TEST_F(TrunkIndexTest, WhatFailedToComeIsTriedAgainLaterAndLater) {
  Trunk trunk;
  const Clock::TimePoint now = Clock::TimePoint() + std::chrono::hours(1);
  const auto pause = [&] {
    trunk.failed_to_come(now);
    return trunk.retry_at - now;
  };
  EXPECT_LT(pause(), Clock::Duration()) << "at once";
  EXPECT_LT(pause(), Clock::Duration());
  for (const int seconds : {10, 20, 40, 80, 160, 320, 600, 600, 600})
    EXPECT_EQ(pause(), std::chrono::seconds(seconds));
  trunk.came();
  EXPECT_LT(pause(), Clock::Duration());
}

}  // namespace
}  // namespace thaw::forkpool
