#include "engine/base/hash.h"

#include <algorithm>
#include <span>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "engine/base/error.h"

namespace thaw {
namespace {

TEST(Hash, IsSha256Truncated) {
  EXPECT_EQ(hash_text("abc").to_hex(), "ba7816bf8f01cfea414140de5dae2223");
}

TEST(Hash, PiecesEqualTheWhole) {
  const std::string text(100000, 'x');
  const auto bytes = std::as_bytes(std::span(text.data(), text.size()));
  for (const std::size_t step : {1UL, 63UL, 64UL, 100000UL}) {
    Hasher hasher;
    for (std::size_t at = 0; at < bytes.size(); at += step)
      hasher.update(bytes.subspan(at, std::min(step, bytes.size() - at)));
    EXPECT_EQ(hasher.finish(), hash_bytes(bytes)) << step;
  }
  EXPECT_EQ(Hasher().finish(), hash_text(""));
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
