#include <algorithm>
#include <cstring>
#include <map>
#include <numeric>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/base/error.h"
#include "engine/ops/cuda/attention_plan.h"
#include "tests/ops/cuda/attention_harness.cuh"

namespace thaw::ops::cuda {
namespace {

TEST_F(CudaAttentionTest, BothKernelsAreNearTheTruth) {
  for (const AttentionShape& one : kShapes) {
    SCOPED_TRACE(std::to_string(one.num_heads) + " heads");
    make(one, 64);
    pool_changed = true;
    const Content text = content(600, 1);
    const auto table = blocks(3, 600);
    store(text, table, 600);
    const auto whole = run({{&text, table, 0, 600}})[0];
    for (const int position : {0, 1, 15, 16, 100, 255, 256, 257, 511, 512, 599}) {
      SCOPED_TRACE(position);
      const auto alone = run({{&text, table, position, 1}})[0];
      const auto truth = expected(text, position);
      expect_near(row(alone, 0), truth);
      expect_near(row(whole, position), truth);
    }
  }
}

TEST_F(CudaAttentionTest, WholeEqualsChunkedEqualsTokenByToken) {
  for (const AttentionShape& one : kShapes) {
    SCOPED_TRACE(std::to_string(one.num_heads) + " heads");
    make(one, 80);
    pool_changed = true;
    const int tokens = 701;
    const Content text = content(tokens, 5);
    const auto table = blocks(70, tokens, -1);
    store(text, table, tokens);
    const auto whole = run({{&text, table, 0, tokens}})[0];
    // Chunks of any size, some for the tile kernel and some for the split kernel.
    for (const int chunk : {256, 300, 333, 100, 37, 8}) {
      for (int first = 0; first < tokens; first += chunk) {
        const int count = std::min(chunk, tokens - first);
        const auto part = run({{&text, table, first, count}})[0];
        for (int t = 0; t < count; ++t)
          ASSERT_TRUE(same_bits(row(part, t), row(whole, first + t)))
              << "chunks of " << chunk << ", token " << first + t;
        if (chunk < 100 && first > 3 * chunk) first += 5 * chunk;
      }
    }
    for (int t = 0; t < tokens; t += t < 20 ? 1 : 13) {
      const auto alone = run({{&text, table, t, 1}})[0];
      ASSERT_TRUE(same_bits(row(alone, 0), row(whole, t))) << "token " << t << " alone";
    }
  }
}

TEST_F(CudaAttentionTest, ASharedTrunkEqualsCopies) {
  for (const AttentionShape& one : {kShapes[0], kShapes[1]}) {
    make(one, 1200);
    pool_changed = true;
    const int trunk = 600;  // two whole splits, and blocks of a third
    const int branches = 18;
    std::vector<Content> texts;
    std::vector<Part> shared;
    std::vector<Part> copies;
    const Content common = content(trunk, 100);
    for (int b = 0; b < branches; ++b) {
      const int tokens = trunk + 20 + b * 7;
      Content text = content(tokens, 200 + b * 3);
      std::copy(common.k.begin(), common.k.end(), text.k.begin());
      std::copy(common.v.begin(), common.v.end(), text.v.begin());
      texts.push_back(text);
    }
    // Shared: blocks 0 .. 36 hold tokens 0 .. 591 for all; the rest is each branch's own.
    for (int b = 0; b < branches; ++b) {
      const int tokens = trunk + 20 + b * 7;
      auto table = blocks(40 + b * 20, tokens);
      std::iota(table.begin(), table.begin() + trunk / kBlockSize, 0);
      store(texts[b], table, tokens);
      shared.push_back({&texts[b], table, tokens - 1, 1});
    }
    const auto together = run(shared);
    for (int b = 0; b < branches; ++b) {
      // A copy of the branch in blocks of its own, alone in its batch.
      const int tokens = trunk + 20 + b * 7;
      const auto table = blocks(1150, tokens, -3);
      store(texts[b], table, tokens);
      pool_changed = true;
      const auto alone = run({{&texts[b], table, tokens - 1, 1}});
      ASSERT_TRUE(same_bits<Bf16>(together[b], alone[0])) << "branch " << b;
    }
  }
}

TEST_F(CudaAttentionTest, ABatchOfStrangersIsEachOneAlone) {
  make(kShapes[0], 400);
  pool_changed = true;
  std::vector<Content> texts;
  std::vector<Part> batch;
  const int lengths[] = {1, 16, 17, 300, 900, 255, 256, 640};
  const int counts[] = {1, 1, 3, 300, 1, 40, 256, 1};
  int block = 0;
  texts.reserve(8);
  for (int i = 0; i < 8; ++i) {
    texts.push_back(content(lengths[i], 300 + i * 3));
    const auto table = blocks(block, lengths[i]);
    block += static_cast<int>(table.size());
    store(texts[i], table, lengths[i]);
    batch.push_back({&texts[i], table, lengths[i] - counts[i], counts[i]});
  }
  const auto together = run(batch);
  for (int i = 0; i < 8; ++i)
    ASSERT_TRUE(same_bits<Bf16>(together[i], run({batch[i]})[0])) << "sequence " << i;
}

TEST_F(CudaAttentionTest, ALongTrunkPrefilledEqualsDecoded) {
  make(kShapes[0], 300);
  pool_changed = true;
  const int tokens = 4001;
  const Content text = content(tokens, 7);
  const auto table = blocks(290, tokens, -1);
  store(text, table, tokens);
  const auto whole = run({{&text, table, 0, tokens}})[0];
  for (const int position : {0, 255, 256, 1000, 2047, 3999, 4000}) {
    const auto alone = run({{&text, table, position, 1}})[0];
    ASSERT_TRUE(same_bits(row(alone, 0), row(whole, position))) << position;
    expect_near(row(alone, 0), expected(text, position));
  }
  const auto tail = run({{&text, table, 3981, 20}})[0];
  for (int t = 0; t < 20; ++t)
    ASSERT_TRUE(same_bits(row(tail, t), row(whole, 3981 + t))) << t;
}

TEST_F(CudaAttentionTest, ANaNKeyReachesOnlyRowsThatSeeIt) {
  // rope_and_store keeps every stored value finite and marks such a token by its key.
  for (const AttentionShape& one : {kShapes[0], kShapes[1]}) {
    make(one, 64);
    pool_changed = true;
    const int tokens = 500;
    Content text = content(tokens, 9);
    const auto table = blocks(0, tokens);
    store(text, table, tokens);
    const auto clean = run({{&text, table, 0, tokens}})[0];
    const int bad = 310;
    std::fill_n(
        text.k.begin() + static_cast<std::size_t>(bad) * shape.num_kv_heads * shape.head_dim,
        shape.num_kv_heads * shape.head_dim, narrow(NAN));
    store(text, table, tokens);
    pool_changed = true;
    const auto marked = run({{&text, table, 0, tokens}})[0];
    for (int t = 0; t < tokens; ++t) {
      if (t < bad) {
        ASSERT_TRUE(same_bits(row(marked, t), row(clean, t))) << t;
      } else {
        for (const Bf16 value : row(marked, t))
          ASSERT_TRUE(std::isnan(widen(value))) << t;
      }
    }
    const auto before = run({{&text, table, 290, 20}})[0];
    for (int t = 0; t < 20; ++t)
      ASSERT_TRUE(same_bits(row(before, t), row(clean, 290 + t))) << t;
  }
}

TEST(CudaAttentionPlanTest, SaysWhatIsWrong) {
  const std::vector<BlockId> table(4);
  std::vector<std::int32_t> words(1000);
  const AttentionSequence good[] = {{table, 0, 1, 60}};
  const std::vector<BlockId> longer(20);
  const AttentionSequence two_splits[] = {{longer, 0, 1, 300}};
  const auto says = [&](AttentionShape shape, std::span<const AttentionSequence> sequences,
                        std::size_t partials, std::size_t room, Errc code, const char* text) {
    const auto plan = plan_attention(shape, sequences, partials, std::span(words).first(room));
    ASSERT_FALSE(plan) << text;
    EXPECT_EQ(plan.error().code, code);
    EXPECT_THAT(plan.error().message, testing::HasSubstr(text));
  };
  EXPECT_TRUE(plan_attention({32, 8, 128}, good, 10, words));
  says({32, 8, 96}, good, 10, 1000, Errc::kInvalidArgument, "head_dim is 96");
  says({30, 8, 128}, good, 10, 1000, Errc::kInvalidArgument, "30 query heads");
  EXPECT_TRUE(plan_attention({32, 8, 128}, good, 0, words));  // one split needs no merging
  says({32, 8, 128, -1}, good, 10, 1000, Errc::kInvalidArgument, "window is -1");
  // What has no room for its partial results goes to the kernel that needs none.
  ASSERT_TRUE(plan_attention({32, 8, 128}, two_splits, 2, words));
  EXPECT_EQ(words[0], 0);
  ASSERT_TRUE(plan_attention({32, 8, 128}, two_splits, 1, words));
  EXPECT_EQ(words[0], 1);  // num_tiles
  says({32, 8, 128}, good, 10, 12, Errc::kResourceExhausted, "room for 12");
  // Chunks go to the tile kernel where they are many rows together, each a tile of its own.
  std::vector<AttentionSequence> chunks;
  words.resize(4000);
  for (int i = 0; i < 4; ++i) {
    chunks.push_back({longer, i * 20, 20, 300});
    ASSERT_TRUE(plan_attention({32, 8, 128}, chunks, 1000, words));
    EXPECT_EQ(words[0], i < 3 ? 0 : 4) << i + 1 << " chunks";
  }
  const AttentionSequence beyond[] = {{table, 0, 1, 64}};
  says({32, 8, 128}, beyond, 10, 1000, Errc::kInvalidArgument, "4 blocks");
}

std::vector<AttentionItem> items_of(std::span<const std::int32_t> words) {
  const AttentionPlanHeader header = header_of(words);
  std::vector<AttentionItem> items(static_cast<std::size_t>(header.num_items));
  std::memcpy(static_cast<void*>(items.data()), words.data() + header.items_at,
              items.size() * sizeof(AttentionItem));
  return items;
}

// (row, split) of the items that merge.
std::vector<std::pair<int, int>> mergers(std::span<const std::int32_t> words) {
  std::vector<std::pair<int, int>> found;
  for (const AttentionItem& item : items_of(words)) {
    for (int e = 0; e < 64; ++e) {
      if ((item.merged >> e & 1) == 0) continue;
      EXPECT_LT(e, item.num_entries);
      AttentionEntry entry;
      std::memcpy(static_cast<void*>(&entry), words.data() + item.entries_at + e * sizeof entry / 4,
                  sizeof entry);
      found.emplace_back(entry.row, item.split);
    }
  }
  std::sort(found.begin(), found.end());
  return found;
}

TEST(CudaAttentionPlanTest, EveryRowOfSeveralSplitsIsMergedOnceByOneOfThem) {
  std::vector<std::int32_t> words(100000);
  const AttentionShape shape{32, 8, 128};
  // Branches of a trunk of 4,000 tokens: each by its own last split.
  std::vector<std::vector<BlockId>> tables(8);
  std::vector<AttentionSequence> branches;
  std::vector<std::pair<int, int>> expected;
  for (int b = 0; b < 8; ++b) {
    tables[b].resize(251);
    std::iota(tables[b].begin(), tables[b].end(), 0);
    tables[b].back() = 1000 + b;
    branches.push_back({tables[b], b, 1, 4000});
    expected.emplace_back(b, 15);
  }
  ASSERT_TRUE(plan_attention(shape, branches, 1000, words));
  EXPECT_EQ(mergers(words), expected);
  EXPECT_EQ(header_of(words).width, ItemWidth::kNarrow);

  // Rows of one sequence: no split merges more of an item's rows than its warps do at a time.
  const AttentionSequence chunk[] = {{tables[0], 0, 16, 3990}};
  ASSERT_TRUE(plan_attention(shape, chunk, 1000, words));
  EXPECT_EQ(header_of(words).width, ItemWidth::kWide);
  const auto spread = mergers(words);
  ASSERT_EQ(spread.size(), 16U);
  std::map<int, int> of_split;
  for (int row = 0; row < 16; ++row) {
    EXPECT_EQ(spread[row].first, row);
    ++of_split[spread[row].second];
  }
  for (const auto& [split, rows] : of_split)
    EXPECT_LE(rows, kWideItemWarps / 4) << "split " << split;

  // Rows of one split are nobody's to merge, and a window's first split may be its only one.
  const AttentionSequence few[] = {{tables[0], 0, 3, 254}};
  ASSERT_TRUE(plan_attention(shape, few, 1000, words));
  EXPECT_EQ(mergers(words), (std::vector<std::pair<int, int>>{{2, 1}}));
  const AttentionSequence late[] = {{tables[0], 0, 1, 3900}};
  ASSERT_TRUE(plan_attention({32, 8, 128, 60}, late, 1000, words));
  EXPECT_TRUE(mergers(words).empty());
}

// Keys of settled blocks are read before the kernels ahead are done: none that the step writes is
// one, whoever of its rows attends.
TEST(CudaAttentionPlanTest, BlocksThatTheStepWritesAreNotSettled) {
  std::vector<std::int32_t> words(100000);
  std::vector<BlockId> table(251);
  std::iota(table.begin(), table.end(), 0);
  const AttentionSequence chunk[] = {{table, 0, 3700, 300}};
  const AttentionSequence last_row[] = {{table, 0, 1, 3999}};
  const auto settled = [&] {
    std::map<int, int> of_split;
    for (const AttentionItem& item : items_of(words))
      of_split[item.split] = item.settled_blocks;
    return of_split;
  };
  ASSERT_TRUE(plan_attention({32, 8, 128}, last_row, 1000, words));
  auto of_split = settled();
  ASSERT_EQ(of_split.size(), 16U);
  EXPECT_EQ(of_split[14], 16);
  EXPECT_EQ(of_split[15], 9) << "all but the row's own block";
  ASSERT_TRUE(plan_attention({32, 8, 128}, last_row, 1000, words, std::nullopt, chunk));
  of_split = settled();
  EXPECT_EQ(of_split[0], 16);
  EXPECT_EQ(of_split[1], 2) << "blocks 16 and 17; position 300 is in block 18";
  for (int split = 2; split < 16; ++split)
    EXPECT_EQ(of_split[split], 0) << "split " << split;
}

}  // namespace
}  // namespace thaw::ops::cuda
