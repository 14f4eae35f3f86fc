// Sliding windows: what a row sees begins inside a split, a block or a tile, and nothing else about
// its bits changes.

#include <cmath>

#include "tests/ops/cuda/attention_harness.cuh"

namespace thaw::ops::cuda {
namespace {

class CudaAttentionWindowTest : public CudaAttentionTest {
 protected:
  void begin(AttentionShape one, int window, int tokens) {
    one.window = window;
    make(one, 80);
    pool_changed = true;
    text = content(tokens, 11);
    table = blocks(70, tokens, -1);
    store(text, table, tokens);
  }

  Content text;
  std::vector<BlockId> table;
};

constexpr int kTokens = 701;

TEST_F(CudaAttentionWindowTest, NearTheTruthAndAlikeInEveryChunk) {
  for (const AttentionShape& one : {kShapes[0], kShapes[1], kShapes[4]}) {
    for (const int window : {1, 16, 100, 255, 256, 257, 300, 600}) {
      SCOPED_TRACE(std::to_string(one.num_heads) + " heads, window " + std::to_string(window));
      begin(one, window, kTokens);
      const auto whole = run({{&text, table, 0, kTokens}})[0];
      for (const int position : {0, 15, 99, 255, 256, 300, 511, 512, 599, 700}) {
        const auto alone = run({{&text, table, position, 1}})[0];
        ASSERT_TRUE(same_bits(row(alone, 0), row(whole, position))) << position;
        expect_near(row(alone, 0), expected(text, position));
      }
      for (const int chunk : {300, 100}) {
        for (int first = 0; first < kTokens; first += chunk) {
          const int count = std::min(chunk, kTokens - first);
          const auto part = run({{&text, table, first, count}})[0];
          for (int t = 0; t < count; ++t)
            ASSERT_TRUE(same_bits(row(part, t), row(whole, first + t))) << first + t;
        }
      }
    }
  }
}

TEST_F(CudaAttentionWindowTest, RowsThatShareBlocksEqualEachAlone) {
  begin(kShapes[0], 280, kTokens);
  std::vector<Part> batch;
  for (int i = 0; i < 17; ++i)
    batch.push_back({&text, table, kTokens - 2 - 37 * i, 1 + i % 2});
  const auto together = run(batch);
  for (std::size_t i = 0; i < batch.size(); ++i)
    ASSERT_TRUE(same_bits<Bf16>(together[i], run({batch[i]})[0])) << i;
}

TEST_F(CudaAttentionWindowTest, AWideWindowIsFullAttention) {
  begin(kShapes[0], kTokens, kTokens);
  const auto wide = run({{&text, table, 0, kTokens}})[0];
  const auto wide_row = run({{&text, table, kTokens - 1, 1}})[0];
  shape.window = 0;
  const auto full = run({{&text, table, 0, kTokens}})[0];
  EXPECT_TRUE(same_bits<Bf16>(wide, full));
  EXPECT_TRUE(same_bits<Bf16>(wide_row, run({{&text, table, kTokens - 1, 1}})[0]));
}

TEST_F(CudaAttentionWindowTest, KeysOutsideLeakNothing) {
  for (const int window : {40, 290}) {
    begin(kShapes[0], window, kTokens);
    const auto clean = run({{&text, table, 0, kTokens}})[0];
    const int bad = 310;  // as rope_and_store marks it: a key of NaN, values finite
    std::fill_n(
        text.k.begin() + static_cast<std::size_t>(bad) * shape.num_kv_heads * shape.head_dim,
        shape.num_kv_heads * shape.head_dim, narrow(NAN));
    store(text, table, kTokens);
    pool_changed = true;
    const auto marked = run({{&text, table, 0, kTokens}})[0];
    for (int t = 0; t < kTokens; ++t) {
      if (t >= bad && t < bad + window)
        ASSERT_TRUE(std::isnan(widen(row(marked, t)[0]))) << t;
      else
        ASSERT_TRUE(same_bits(row(marked, t), row(clean, t))) << t;
    }
    for (const int t : {309, 310, bad + window - 1, bad + window, 700}) {
      const auto alone = run({{&text, table, t, 1}})[0];
      if (t >= bad && t < bad + window)
        ASSERT_TRUE(std::isnan(widen(row(alone, 0)[0]))) << t;
      else
        ASSERT_TRUE(same_bits(row(alone, 0), row(clean, t))) << t;
    }
  }
}

}  // namespace
}  // namespace thaw::ops::cuda
