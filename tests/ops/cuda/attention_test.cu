#include <algorithm>
#include <cmath>
#include <numeric>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/base/error.h"
#include "engine/ops/cuda/attention.h"
#include "tests/ops/cuda/cuda_ops_util.cuh"

namespace thaw::ops::cuda {
namespace {

constexpr int kLayers = 2;
constexpr int kLayer = 1;
constexpr std::size_t kPartials = 20000;

/// Keys and values of one sequence, [tokens][num_kv_heads][head_dim] each, and its queries,
/// [tokens][num_heads * head_dim].
struct Content {
  std::vector<Bf16> k;
  std::vector<Bf16> v;
  std::vector<Bf16> q;
};

/// Rows [first, first + count) of a content held in `table`.
struct Part {
  const Content* content;
  std::vector<BlockId> table;
  int first;
  int count;
};

class CudaAttentionTest : public CudaOpsTest {
 protected:
  // A pool of NaN: what is read without having been written shows.
  void make(AttentionShape shape_, int num_blocks_) {
    shape = shape_;
    num_blocks = num_blocks_;
    const DeviceKv kv = layout(nullptr);
    pool.assign(kv.block_elements() * num_blocks, narrow(NAN));
  }

  DeviceKv layout(Bf16* base) const { return {base, kLayers, shape.num_kv_heads, shape.head_dim}; }

  Content content(int tokens, unsigned seed) const {
    const std::size_t width = static_cast<std::size_t>(shape.num_kv_heads) * shape.head_dim;
    return {random_bf16(tokens * width, 1.0F, seed), random_bf16(tokens * width, 1.0F, seed + 1),
            random_bf16(static_cast<std::size_t>(tokens) * shape.num_heads * shape.head_dim, 0.7F,
                        seed + 2)};
  }

  // Writes tokens [0, tokens) into the blocks of `table`.
  void store(const Content& content, const std::vector<BlockId>& table, int tokens) {
    const DeviceKv kv = layout(pool.data());
    for (int t = 0; t < tokens; ++t)
      for (int h = 0; h < shape.num_kv_heads; ++h)
        for (int d = 0; d < shape.head_dim; ++d) {
          const std::size_t at =
              (static_cast<std::size_t>(t) * shape.num_kv_heads + h) * shape.head_dim + d;
          const int slot = kv.slab_index(t % kBlockSize, d);
          kv.slab(table[t / kBlockSize], kLayer, false, h)[slot] = content.k[at];
          kv.slab(table[t / kBlockSize], kLayer, true, h)[slot] = content.v[at];
        }
  }

  // Blocks first, first + step, ... for `tokens` tokens.
  static std::vector<BlockId> blocks(int first, int tokens, int step = 1) {
    std::vector<BlockId> table(ceil_div(tokens, kBlockSize));
    for (std::size_t i = 0; i < table.size(); ++i)
      table[i] = static_cast<BlockId>(first + static_cast<int>(i) * step);
    return table;
  }

  // One launch over all parts; returns the rows of each, [count][num_heads * head_dim].
  std::vector<std::vector<Bf16>> run(const std::vector<Part>& parts) {
    const int width = shape.num_heads * shape.head_dim;
    std::vector<Bf16> q;
    std::vector<AttentionSequence> sequences;
    for (const Part& part : parts) {
      sequences.push_back({part.table, static_cast<int>(q.size() / width), part.count, part.first});
      q.insert(q.end(), part.content->q.begin() + static_cast<std::size_t>(part.first) * width,
               part.content->q.begin() + static_cast<std::size_t>(part.first + part.count) * width);
    }
    const int rows = static_cast<int>(q.size() / width);
    std::vector<std::int32_t> words(1 << 20);
    words.resize(plan_attention(shape, sequences, kPartials, words).value());
    if (!device_pool || pool_changed) {
      device_pool = std::make_unique<DeviceBuffer<Bf16>>(to_device(pool, *stream));
      pool_changed = false;
    }
    const auto device_q = to_device(q, *stream);
    const auto plan = to_device(words, *stream);
    const auto workspace = poisoned<float>(attention_workspace_elements(shape, kPartials), *stream);
    const auto out = poisoned<Bf16>(tiles_elements(rows, width), *stream);
    AttentionParams params;
    params.kv = layout(device_pool->data());
    params.layer = kLayer;
    params.shape = shape;
    params.scale = 1.0F / std::sqrt(static_cast<float>(shape.head_dim));
    params.q = device_q.data();
    params.q_stride = width;
    params.plan = plan.data();
    params.workspace = workspace.data();
    params.max_partials = kPartials;
    params.out = {out.data(), width};
    attention(*device, params, *stream);
    const auto tiles = to_host(out, *stream);
    std::vector<std::vector<Bf16>> results;
    int row = 0;
    for (const Part& part : parts) {
      std::vector<Bf16> values;
      for (int t = 0; t < part.count; ++t, ++row)
        for (int c = 0; c < width; ++c)
          values.push_back(tiles[tiles_index(row, c, width)]);
      results.push_back(values);
    }
    return results;
  }

  std::span<const Bf16> row(const std::vector<Bf16>& rows, int index) const {
    const std::size_t width = static_cast<std::size_t>(shape.num_heads) * shape.head_dim;
    return {rows.data() + index * width, width};
  }

  // Attention of one row in double precision.
  std::vector<double> expected(const Content& content, int position) const {
    const int d_head = shape.head_dim;
    const int group = shape.num_heads / shape.num_kv_heads;
    std::vector<double> out;
    for (int h = 0; h < shape.num_heads; ++h) {
      std::vector<double> scores(position + 1);
      for (int t = 0; t <= position; ++t) {
        for (int d = 0; d < d_head; ++d)
          scores[t] +=
              static_cast<double>(widen(
                  content.q[(static_cast<std::size_t>(position) * shape.num_heads + h) * d_head +
                            d])) *
              widen(content
                        .k[(static_cast<std::size_t>(t) * shape.num_kv_heads + h / group) * d_head +
                           d]);
        scores[t] /= std::sqrt(static_cast<double>(d_head));
      }
      const double max = *std::max_element(scores.begin(), scores.end());
      double sum = 0;
      for (double& score : scores)
        sum += score = std::exp(score - max);
      for (int d = 0; d < d_head; ++d) {
        double value = 0;
        for (int t = 0; t <= position; ++t)
          value +=
              scores[t] *
              widen(content
                        .v[(static_cast<std::size_t>(t) * shape.num_kv_heads + h / group) * d_head +
                           d]);
        out.push_back(value / sum);
      }
    }
    return out;
  }

  void expect_near(std::span<const Bf16> got, const std::vector<double>& truth) const {
    double size = 0;
    for (const double value : truth)
      size += value * value;
    size = std::sqrt(size / truth.size());
    for (std::size_t i = 0; i < truth.size(); ++i)
      ASSERT_NEAR(widen(got[i]), truth[i], kAttentionTolerance * (size + std::abs(truth[i]))) << i;
  }

  AttentionShape shape;
  int num_blocks = 0;
  std::vector<Bf16> pool;
  bool pool_changed = true;
  std::unique_ptr<DeviceBuffer<Bf16>> device_pool;
};

const AttentionShape kShapes[] = {{32, 8, 128}, {9, 3, 64}, {4, 4, 128}, {16, 1, 64}, {7, 1, 128}};

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
  says({32, 8, 128}, good, 0, 1000, Errc::kResourceExhausted, "1 partial results");
  says({32, 8, 128}, good, 10, 12, Errc::kResourceExhausted, "room for 12");
  const AttentionSequence beyond[] = {{table, 0, 1, 64}};
  says({32, 8, 128}, beyond, 10, 1000, Errc::kInvalidArgument, "4 blocks");
}

}  // namespace
}  // namespace thaw::ops::cuda
