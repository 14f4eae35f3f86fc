#include "engine/kv/block_pool.h"

#include <set>

#include <gtest/gtest.h>

#include "engine/base/error.h"

namespace thaw::kv {
namespace {

TEST(BlockPool, HandsOutEachBlockOnce) {
  BlockPool pool(3);
  std::set<BlockId> blocks{pool.allocate(), pool.allocate(), pool.allocate()};
  EXPECT_EQ(blocks, (std::set<BlockId>{0, 1, 2}));
  EXPECT_EQ(pool.allocate(), -1);
  EXPECT_EQ(pool.num_free(), 0U);
}

TEST(BlockPool, IsFreeAtZeroReferences) {
  BlockPool pool(2);
  const BlockId block = pool.allocate();
  pool.add_reference(block);
  EXPECT_FALSE(pool.release(block));
  EXPECT_EQ(pool.references(block), 1);
  EXPECT_TRUE(pool.release(block));
  EXPECT_EQ(pool.num_free(), 2U);
}

TEST(BlockPool, TakesGivenBlocks) {
  BlockPool pool(4);
  pool.take(2);
  pool.take(0);
  EXPECT_EQ(pool.num_free(), 2U);
  std::set<BlockId> rest{pool.allocate(), pool.allocate()};
  EXPECT_EQ(rest, (std::set<BlockId>{1, 3}));
  EXPECT_TRUE(pool.release(2));
  pool.take(2);
  EXPECT_EQ(pool.allocate(), -1);
}

TEST(BlockPool, RefusesWrongCounts) {
  BlockPool pool(1);
  EXPECT_THROW(pool.release(0), Exception);
  EXPECT_THROW(pool.add_reference(0), Exception);
  pool.take(0);
  EXPECT_THROW(pool.take(0), Exception);
}

}  // namespace
}  // namespace thaw::kv
