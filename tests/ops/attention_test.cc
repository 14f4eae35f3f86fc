#include "engine/ops/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <tuple>

#include "tests/ops/attention_cache.h"

namespace thaw::ops {
namespace {

using namespace testing;  // NOLINT: the tests' own helpers

class AttentionTest : public ::testing::TestWithParam<std::tuple<std::string, KvDType, int>> {
 protected:
  std::string isa() const { return std::get<0>(GetParam()); }
  Shape shape() const {
    Shape shape;
    shape.dtype = std::get<1>(GetParam());
    shape.head_dim = std::get<2>(GetParam());
    return shape;
  }
};

constexpr int kLength = 555;  // two whole splits, a partial one, a partial block

TEST_P(AttentionTest, ChunksAndSingleTokensGiveTheSameBits) {
  auto device = make_device(isa());
  const Tokens tokens = make_tokens(shape(), kLength, 100);
  const std::vector<BlockId> table = scattered_table(35);
  Cache whole_cache(shape());
  const std::vector<float> whole = whole_cache.run(*device, tokens, table, 0, kLength);
  for (const float value : whole)
    ASSERT_TRUE(std::isfinite(value));
  const std::vector<int> chunks =
      isa() == "generic" ? std::vector{1, 15, 100} : std::vector{1, 2, 15, 16, 64, 100, 257};
  for (const int chunk : chunks) {
    Cache cache(shape());
    std::vector<float> pieces;
    for (int first = 0; first < kLength; first += chunk) {
      const std::vector<float> part =
          cache.run(*device, tokens, table, first, std::min(chunk, kLength - first));
      pieces.insert(pieces.end(), part.begin(), part.end());
    }
    ASSERT_TRUE(same_bits(pieces, whole)) << "chunks of " << chunk;
  }
}

TEST_P(AttentionTest, EqualsGenericAndAnyNumberOfThreads) {
  const Tokens tokens = make_tokens(shape(), kLength, 200);
  const std::vector<BlockId> table = scattered_table(35);
  auto generic = make_device("generic");
  Cache expected_cache(shape());
  const std::vector<float> expected = expected_cache.run(*generic, tokens, table, 0, kLength);
  for (const int threads : {1, 2, 3}) {
    auto device = make_device(isa(), threads);
    Cache cache(shape());
    ASSERT_TRUE(same_bits(cache.run(*device, tokens, table, 0, kLength), expected)) << threads;
    ASSERT_TRUE(
        same_bits(cache.run(*device, tokens, table, kLength - 5, 5),
                  {expected.end() - 5 * shape().num_heads * shape().head_dim, expected.end()}))
        << threads;
  }
}

TEST_P(AttentionTest, BranchesOnASharedTrunkEqualSeparateCopies) {
  auto device = make_device(isa(), 2);
  const int trunk = 520;  // shared blocks 0 .. 31 whole, the 33rd copied per branch
  const int branches = 7;
  const int length = 530;
  const int width = shape().num_heads * shape().head_dim;
  Cache cache(shape());
  Cache alone_cache(shape());
  const std::vector<BlockId> trunk_table = scattered_table(34);
  const Tokens base = make_tokens(shape(), length, 300);
  cache.run(*device, base, trunk_table, 0, trunk);

  std::vector<std::vector<BlockId>> tables;
  std::vector<Tokens> tokens;
  std::vector<AttentionSequence> sequences;
  std::vector<float> q;
  std::vector<float> expected;
  for (int b = 0; b < branches; ++b) {
    // Own tokens from `trunk` on; the partial block's shared slots are written again.
    Tokens own = make_tokens(shape(), length, 400 + 10 * static_cast<std::uint32_t>(b));
    const int kv_width = shape().num_kv_heads * shape().head_dim;
    std::copy_n(base.q.begin(), trunk * width, own.q.begin());
    std::copy_n(base.k.begin(), trunk * kv_width, own.k.begin());
    std::copy_n(base.v.begin(), trunk * kv_width, own.v.begin());
    std::vector<BlockId> table(trunk_table.begin(), trunk_table.begin() + 32);
    // Blocks that neither the trunk nor another branch uses.
    for (BlockId id = 0; table.size() < 34; ++id) {
      const bool used =
          std::ranges::count(trunk_table, id) > 0 ||
          std::ranges::any_of(tables, [id](const auto& t) { return std::ranges::count(t, id); });
      if (!used && std::ranges::count(table, id) == 0) table.push_back(id);
    }
    tables.push_back(table);
    tokens.push_back(own);
  }
  // Branches differ in how far they are, and two of them bring several rows.
  for (int b = 0; b < branches; ++b) {
    const auto i = static_cast<std::size_t>(b);
    const int rows = b % 3 == 0 ? 3 : 1;
    const int first = length - 1 - b - rows;
    cache.store(*device, tokens[i], {tables[i], 0, first + rows - 512, 512});
    sequences.push_back({tables[i], static_cast<int>(q.size()) / width, rows, first});
    const std::vector<float> part = cache.q_rows(tokens[i], first, rows);
    q.insert(q.end(), part.begin(), part.end());

    // The same branch alone, in other blocks.
    const std::vector<BlockId> table = scattered_table(34, b + 1);
    const std::vector<float> all = alone_cache.run(*device, tokens[i], table, 0, first + rows);
    expected.insert(expected.end(), all.end() - rows * width, all.end());
  }
  ASSERT_TRUE(same_bits(cache.attend(*device, sequences, q), expected));
}

// Keys behind a row's position, a neighbour's tokens and unwritten slots hold NaN: none may leak.
TEST_P(AttentionTest, FutureKeysLeakNothing) {
  auto device = make_device(isa());
  const std::vector<BlockId> table = scattered_table(20);
  Tokens tokens = make_tokens(shape(), 300, 500);
  Cache clean(shape());
  const std::vector<float> expected = clean.run(*device, tokens, table, 0, 300);
  const int bad_position = 273;
  const auto kv_width = static_cast<std::size_t>(shape().num_kv_heads * shape().head_dim);
  for (std::size_t i = bad_position * kv_width; i < (bad_position + 1) * kv_width; ++i) {
    tokens.k[i] = std::numeric_limits<float>::quiet_NaN();
    tokens.v[i] = std::numeric_limits<float>::infinity();
  }
  Cache cache(shape());
  const std::vector<float> out = cache.run(*device, tokens, table, 0, 300);
  const auto width = static_cast<std::size_t>(shape().num_heads * shape().head_dim);
  const auto before = static_cast<std::ptrdiff_t>(bad_position * width);
  EXPECT_TRUE(same_bits({out.begin(), out.begin() + before},
                        {expected.begin(), expected.begin() + before}));
  for (std::size_t i = bad_position * width; i < out.size(); ++i)
    ASSERT_TRUE(std::isnan(out[i])) << i;
}

// Tolerances: float32 sums over at most 555 keys; K and V compared after their rounding.
TEST_P(AttentionTest, IsCloseToDoublePrecision) {
  auto device = make_device(isa());
  const Shape s = shape();
  const Tokens tokens = make_tokens(s, kLength, 600);
  Cache cache(s);
  const std::vector<float> out = cache.run(*device, tokens, scattered_table(35), 0, kLength);
  const auto rounded = [&s](float value) {
    if (s.dtype == KvDType::kBF16) return bf16_to_float(float_to_bf16(value));
    if (s.dtype == KvDType::kF16) return f16_to_float(float_to_f16(value));
    return value;
  };
  const double scale = 1.0F / std::sqrt(static_cast<float>(s.head_dim));
  for (const int position : {0, 1, 16, 255, 256, 300, kLength - 1}) {
    for (int head = 0; head < s.num_heads; ++head) {
      const int kv_head = head / (s.num_heads / s.num_kv_heads);
      const float* q = &tokens.q[(position * s.num_heads + head) * s.head_dim];
      std::vector<double> weights;
      for (int key = 0; key <= position; ++key) {
        double score = 0;
        for (int d = 0; d < s.head_dim; ++d)
          score += static_cast<double>(q[d]) *
                   rounded(tokens.k[(key * s.num_kv_heads + kv_head) * s.head_dim + d]);
        weights.push_back(score * scale);
      }
      const double top = *std::ranges::max_element(weights);
      for (double& weight : weights)
        weight = std::exp(weight - top);
      const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
      for (int d = 0; d < s.head_dim; ++d) {
        double exact = 0;
        for (int key = 0; key <= position; ++key)
          exact += weights[static_cast<std::size_t>(key)] / sum *
                   rounded(tokens.v[(key * s.num_kv_heads + kv_head) * s.head_dim + d]);
        ASSERT_NEAR(out[(position * s.num_heads + head) * s.head_dim + d], exact, 5e-6)
            << "position " << position << " head " << head;
      }
    }
  }
}

std::string param_name(
    const ::testing::TestParamInfo<std::tuple<std::string, KvDType, int>>& info) {
  constexpr const char* kNames[] = {"bf16", "f16", "f32"};
  return std::get<0>(info.param) + "_" + kNames[static_cast<int>(std::get<1>(info.param))] + "_" +
         std::to_string(std::get<2>(info.param));
}

/// Everything for the vector units; the plain kernels are slow and the others are compared with
/// them.
std::vector<std::tuple<std::string, KvDType, int>> all_params() {
  std::vector<std::tuple<std::string, KvDType, int>> params;
  for (const std::string& isa : available_isas()) {
    params.emplace_back(isa, KvDType::kBF16, 32);
    params.emplace_back(isa, KvDType::kF16, 20);
    if (isa == "generic") continue;
    params.emplace_back(isa, KvDType::kF32, 20);
    params.emplace_back(isa, KvDType::kF32, 32);
    params.emplace_back(isa, KvDType::kF16, 64);
    params.emplace_back(isa, KvDType::kBF16, 80);
  }
  return params;
}

INSTANTIATE_TEST_SUITE_P(Isas, AttentionTest, ::testing::ValuesIn(all_params()), param_name);

TEST(Attention, ShortBlockTableIsRefused) {
  auto device = make_device("generic");
  const Shape shape;
  Cache cache(shape);
  const std::vector<BlockId> table = {0};
  const AttentionSequence sequence{table, 0, 1, 16};
  const std::vector<float> q(static_cast<std::size_t>(shape.num_heads * shape.head_dim));
  EXPECT_THROW(cache.attend(*device, {&sequence, 1}, q), Exception);
}

}  // namespace
}  // namespace thaw::ops
