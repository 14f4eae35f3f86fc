#include "kvsnap/shard_path.h"

#include <gtest/gtest.h>

namespace thaw::kvsnap {
namespace {

TEST(ShardPath, PutsTheRankBeforeTheExtension) {
  EXPECT_EQ(shard_path("weights.thaw", 0), "weights.thaw");
  EXPECT_EQ(shard_path("weights.thaw", 1), "weights.rank1.thaw");
  EXPECT_EQ(shard_path("a.b/weights.thaw", 12), "a.b/weights.rank12.thaw");
  EXPECT_EQ(shard_path("s3://bucket/m/weights.thaw", 3), "s3://bucket/m/weights.rank3.thaw");
  EXPECT_EQ(shard_path("weights", 1), "weights.rank1");
  EXPECT_EQ(shard_path("a.b/weights", 1), "a.b/weights.rank1");
  EXPECT_EQ(shard_path("v1.2.thaw", 1), "v1.2.rank1.thaw");
  EXPECT_EQ(shard_path("folder/.hidden", 2), "folder/.hidden.rank2");
  EXPECT_EQ(shard_path("", 2), ".rank2");
}

}  // namespace
}  // namespace thaw::kvsnap
