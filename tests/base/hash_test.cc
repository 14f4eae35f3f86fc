#include "engine/base/hash.h"

#include <vector>

#include <gtest/gtest.h>

#include "engine/base/error.h"

namespace thaw {
namespace {

TEST(Hash, IsSha256Truncated) {
  EXPECT_EQ(hash_text("abc").to_hex(), "ba7816bf8f01cfea414140de5dae2223");
}

TEST(Hash, CacheRootsDifferInEveryField) {
  const Hash128 engine = hash_text("engine");
  const Hash128 base = make_cache_root(engine, "tenant", "salt", "adapter");
  EXPECT_NE(base, make_cache_root(hash_text("other"), "tenant", "salt", "adapter"));
  EXPECT_NE(base, make_cache_root(engine, "tenant2", "salt", "adapter"));
  EXPECT_NE(base, make_cache_root(engine, "tenant", "salt2", "adapter"));
  EXPECT_NE(base, make_cache_root(engine, "tenant", "salt", "adapter2"));
  EXPECT_NE(make_cache_root(engine, "ab", "c", ""), make_cache_root(engine, "a", "bc", ""));
}

TEST(Hash, BlockChainDependsOnParentAndTokens) {
  std::vector<TokenId> tokens(kBlockSize, 7);
  const Hash128 root = hash_text("root");
  const Hash128 first = chain_block_hash(root, tokens);
  EXPECT_NE(first, chain_block_hash(first, tokens));
  tokens.back() = 8;
  EXPECT_NE(first, chain_block_hash(root, tokens));
  tokens.pop_back();
  EXPECT_THROW(chain_block_hash(root, tokens), Exception);
}

}  // namespace
}  // namespace thaw
