#include "forkpool/ledger.h"

#include <map>
#include <set>
#include <utility>

#include <gtest/gtest.h>

#include "engine/base/hash.h"
#include "tests/forkpool/random_frames.h"

namespace thaw::forkpool {
namespace {

constexpr std::uint64_t kSeed = 77;

Hash128 root(int number) {
  return hash_text("root " + std::to_string(number));
}

/// The entries of a prompt's whole blocks, in blocks first_block, first_block + 1, ...
std::vector<BlockEntry> entries(const Hash128& root, const std::vector<TokenId>& prompt,
                                BlockId first_block) {
  std::vector<BlockEntry> blocks;
  PrefixNames names(root, prompt);
  for (std::size_t i = 0; i < names.num_blocks(); ++i) {
    const auto tokens = names.tokens(i);
    const Hash128 parent = i == 0 ? root : names.name(i - 1);
    blocks.push_back({root, parent, names.name(i), first_block++, to_block_tokens(tokens)});
  }
  return blocks;
}

std::uint32_t alive(const Ledger& ledger, const Hash128& root, const std::vector<TokenId>& prompt) {
  PrefixNames names(root, prompt);
  return ledger.alive_tokens(names);
}

TEST(Ledger, CountsLeadingWholeBlocks) {
  RandomFrames random(kSeed);
  const auto prompt = random.tokens(3 * kBlockSize + 5);
  Ledger ledger;
  EXPECT_EQ(alive(ledger, root(1), prompt), 0U);
  const auto blocks = entries(root(1), prompt, 0);
  ledger.publish({blocks[0], blocks[2]});
  EXPECT_EQ(alive(ledger, root(1), prompt), 16U);
  ledger.publish({blocks[1]});
  EXPECT_EQ(alive(ledger, root(1), prompt), 48U);
  EXPECT_EQ(alive(ledger, root(2), prompt), 0U);
  auto other = prompt;
  other[20] ^= 1;
  EXPECT_EQ(alive(ledger, root(1), other), 16U);
  ledger.evict(std::vector{blocks[0].hash});
  EXPECT_EQ(alive(ledger, root(1), prompt), 0U);
  ledger.evict(std::vector{blocks[0].hash});  // again: nothing
  EXPECT_EQ(ledger.size(), 2U);
}

TEST(Ledger, TheTokensDecideNotOnlyTheName) {
  const std::vector<TokenId> prompt(kBlockSize, 5);
  auto blocks = entries(root(1), prompt, 0);
  blocks[0].tokens[3] = 6;
  Ledger ledger;
  ledger.publish(blocks);
  EXPECT_EQ(alive(ledger, root(1), prompt), 0U);
}

TEST(Ledger, ABlockHasOneName) {
  RandomFrames random(kSeed);
  const auto first = random.tokens(kBlockSize);
  const auto second = random.tokens(kBlockSize);
  Ledger ledger;
  ledger.publish(entries(root(1), first, 7));
  ledger.publish(entries(root(1), second, 7));
  EXPECT_EQ(alive(ledger, root(1), first), 0U);
  EXPECT_EQ(alive(ledger, root(1), second), 16U);
  ledger.publish(entries(root(1), second, 8));  // moved: block 7 is nobody's
  ledger.publish(entries(root(1), first, 7));
  EXPECT_EQ(alive(ledger, root(1), first), 16U);
  EXPECT_EQ(alive(ledger, root(1), second), 16U);
}

TEST(Ledger, TellsWhereBlocksLieAndWhetherTheyStayed) {
  RandomFrames random(kSeed);
  const auto prompt = random.tokens(3 * kBlockSize);
  PrefixNames names(root(1), prompt);
  Ledger ledger;
  const auto blocks = entries(root(1), prompt, 4);
  ledger.publish(blocks);
  EXPECT_EQ(ledger.alive_blocks(names, 3), (std::vector<BlockId>{4, 5, 6}));
  EXPECT_EQ(ledger.alive_blocks(names, 2), (std::vector<BlockId>{4, 5}));
  const std::vector hashes = {names.name(0), names.name(1), names.name(2)};
  const std::vector<BlockId> lie_in = {4, 5, 6};
  const std::uint64_t then = ledger.version();
  const auto stayed = [&] { return ledger.unmoved(hashes, lie_in, then); };
  EXPECT_TRUE(stayed());
  EXPECT_FALSE(ledger.unmoved(hashes, std::vector<BlockId>{4, 5, 7}, then));
  EXPECT_FALSE(ledger.unmoved(hashes, std::vector<BlockId>{4, 5}, then));
  ledger.publish(blocks);  // nothing new
  ledger.publish(entries(root(3), prompt, 20));  // others come and go
  ledger.evict(std::vector{entries(root(3), prompt, 20)[1].hash});
  EXPECT_TRUE(stayed());
  ledger.evict(std::vector{blocks[1].hash});
  EXPECT_EQ(ledger.alive_blocks(names, 3), (std::vector<BlockId>{4}));
  EXPECT_FALSE(stayed());
  ledger.publish(blocks);  // there again, and yet it may have been something else meanwhile
  EXPECT_EQ(ledger.alive_blocks(names, 3), lie_in);
  EXPECT_FALSE(stayed());
  EXPECT_TRUE(ledger.unmoved(hashes, lie_in, ledger.version()));

  std::uint64_t before = ledger.version();
  ledger.publish(entries(root(2), prompt, 6));  // block 6 has another name now
  EXPECT_FALSE(ledger.unmoved(hashes, lie_in, before));
  PrefixNames others(root(2), prompt);
  const std::vector moved = {others.name(0), others.name(1), others.name(2)};
  before = ledger.version();
  ledger.publish(entries(root(2), prompt, 10));  // and its own lies elsewhere
  EXPECT_FALSE(ledger.unmoved(moved, std::vector<BlockId>{6, 7, 8}, before));
  EXPECT_FALSE(ledger.unmoved(moved, std::vector<BlockId>{10, 11, 12}, before));
  EXPECT_TRUE(ledger.unmoved(moved, std::vector<BlockId>{10, 11, 12}, ledger.version()));
  before = ledger.version();
  ledger.clear();
  EXPECT_FALSE(ledger.unmoved(moved, std::vector<BlockId>{10, 11, 12}, before));
}

TEST(Ledger, OffersWholeChainsParentsFirst) {
  RandomFrames random(kSeed);
  Ledger ledger;
  std::set<Hash128> reachable;
  BlockId block = 0;
  for (int i = 0; i < 20; ++i) {
    const auto blocks =
        entries(root(i % 3), random.tokens(kBlockSize * (1 + random.number(5))), block);
    block += 10;
    ledger.publish(blocks);
    const std::size_t gap = random.number(blocks.size());  // past the end: none
    for (std::size_t b = 0; b < std::min(gap, blocks.size()); ++b)
      reachable.insert(blocks[b].hash);
    if (gap < blocks.size()) ledger.evict(std::vector{blocks[gap].hash});
  }
  const auto offered = ledger.adoptable(1000);
  std::set<Hash128> seen;
  for (const BlockEntry& entry : offered) {
    EXPECT_TRUE(entry.parent == entry.root || seen.contains(entry.parent));
    EXPECT_TRUE(seen.insert(entry.hash).second);
  }
  EXPECT_EQ(seen, reachable);
  EXPECT_EQ(ledger.size(), reachable.size());  // what is not offered is forgotten
  const auto fewer = ledger.adoptable(5);
  EXPECT_EQ(fewer.size(), 5U);
  EXPECT_EQ(ledger.size(), 5U);
}

TEST(PrefixNames, SharedBlocksKeepTheirNames) {
  RandomFrames random(kSeed);
  const auto prompt = random.tokens(5 * kBlockSize);
  auto branch = prompt;
  branch[40] ^= 1;
  PrefixNames names(root(1), prompt);
  names.name(4);
  PrefixNames forked(names, branch, 40);
  PrefixNames alone(root(1), branch);
  for (std::size_t i = 0; i < 5; ++i) {
    EXPECT_EQ(forked.name(i), alone.name(i));
    EXPECT_EQ(forked.name(i) == names.name(i), i < 2);
  }
}

}  // namespace
}  // namespace thaw::forkpool
