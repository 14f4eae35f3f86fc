// Sliding windows: what a row sees begins inside a split, a block or a tile, and nothing else about
// its bits changes.

#include <limits>
#include <tuple>

#include "tests/ops/attention_cache.h"

namespace thaw::ops {
namespace {

using namespace testing;  // NOLINT: the tests' own helpers

constexpr int kWindowedLength = 700;  // two whole splits, a partial one, a partial block

class WindowTest : public ::testing::TestWithParam<std::tuple<std::string, KvDType, int, int>> {
 protected:
  std::string isa() const { return std::get<0>(GetParam()); }
  Shape shape() const {
    Shape shape;
    shape.dtype = std::get<1>(GetParam());
    shape.head_dim = std::get<2>(GetParam());
    shape.window = std::get<3>(GetParam());
    return shape;
  }
  int width() const { return shape().num_heads * shape().head_dim; }
  int kv_width() const { return shape().num_kv_heads * shape().head_dim; }
};

TEST_P(WindowTest, ChunksAndSingleTokensGiveTheSameBits) {
  auto device = make_device(isa());
  const Tokens tokens = make_tokens(shape(), kWindowedLength, 100);
  const std::vector<BlockId> table = scattered_table(44);
  Cache whole_cache(shape());
  const std::vector<float> whole = whole_cache.run(*device, tokens, table, 0, kWindowedLength);
  for (const int chunk : {1, 7, 16, 100}) {
    if (isa() == "generic" && chunk == 1) continue;
    Cache cache(shape());
    std::vector<float> pieces;
    for (int first = 0; first < kWindowedLength; first += chunk) {
      const auto part =
          cache.run(*device, tokens, table, first, std::min(chunk, kWindowedLength - first));
      pieces.insert(pieces.end(), part.begin(), part.end());
    }
    ASSERT_TRUE(same_bits(pieces, whole)) << "chunks of " << chunk;
  }
}

TEST_P(WindowTest, EqualsGenericAndAnyNumberOfThreads) {
  const Tokens tokens = make_tokens(shape(), kWindowedLength, 200);
  const std::vector<BlockId> table = scattered_table(44);
  auto generic = make_device("generic");
  Cache expected_cache(shape());
  const std::vector<float> expected =
      expected_cache.run(*generic, tokens, table, 0, kWindowedLength);
  for (const int threads : {1, 3}) {
    auto device = make_device(isa(), threads);
    Cache cache(shape());
    ASSERT_TRUE(same_bits(cache.run(*device, tokens, table, 0, kWindowedLength), expected))
        << threads;
  }
}

// Rows of several sequences whose windows begin and end at different keys of the same blocks.
TEST_P(WindowTest, RowsThatShareBlocksEqualEachAlone) {
  auto device = make_device(isa(), 2);
  const Tokens tokens = make_tokens(shape(), kWindowedLength, 300);
  const std::vector<BlockId> table = scattered_table(44);
  Cache cache(shape());
  const std::vector<float> whole = cache.run(*device, tokens, table, 0, kWindowedLength);
  std::vector<AttentionSequence> sequences;
  std::vector<float> q;
  std::vector<float> expected;
  for (int i = 0; i < 9; ++i) {
    const int rows = 1 + i % 3;
    const int first = kWindowedLength - 1 - 37 * i - rows;
    sequences.push_back({table, static_cast<int>(q.size()) / width(), rows, first});
    const std::vector<float> part = cache.q_rows(tokens, first, rows);
    q.insert(q.end(), part.begin(), part.end());
    expected.insert(expected.end(), whole.begin() + first * width(),
                    whole.begin() + (first + rows) * width());
  }
  ASSERT_TRUE(same_bits(cache.attend(*device, sequences, q), expected));
}

// What lies before a window and behind a row is not visited: NaN there changes no bit.
TEST_P(WindowTest, KeysOutsideLeakNothing) {
  auto device = make_device(isa());
  const std::vector<BlockId> table = scattered_table(44);
  Tokens tokens = make_tokens(shape(), kWindowedLength, 400);
  Cache clean(shape());
  const std::vector<float> expected = clean.run(*device, tokens, table, 0, kWindowedLength);
  const int bad = 300;
  for (int i = bad * kv_width(); i < (bad + 1) * kv_width(); ++i) {
    tokens.k[static_cast<std::size_t>(i)] = std::numeric_limits<float>::quiet_NaN();
    tokens.v[static_cast<std::size_t>(i)] = std::numeric_limits<float>::infinity();
  }
  Cache cache(shape());
  const std::vector<float> out = cache.run(*device, tokens, table, 0, kWindowedLength);
  for (int position = 0; position < kWindowedLength; ++position) {
    const bool sees = position >= bad && position < bad + shape().window;
    for (int i = position * width(); i < (position + 1) * width(); ++i) {
      const auto at = static_cast<std::size_t>(i);
      if (sees) {
        ASSERT_TRUE(std::isnan(out[at])) << position;
      } else {
        ASSERT_EQ(std::bit_cast<std::uint32_t>(out[at]), std::bit_cast<std::uint32_t>(expected[at]))
            << position;
      }
    }
  }
}

// A window that covers everything is no window, bit for bit.
TEST_P(WindowTest, AWideWindowIsFullAttention) {
  auto device = make_device(isa());
  const Tokens tokens = make_tokens(shape(), kWindowedLength, 500);
  Shape wide = shape();
  wide.window = kWindowedLength;
  Shape full = shape();
  full.window = 0;
  Cache wide_cache(wide);
  Cache full_cache(full);
  EXPECT_TRUE(same_bits(wide_cache.run(*device, tokens, scattered_table(44), 0, kWindowedLength),
                        full_cache.run(*device, tokens, scattered_table(44), 0, kWindowedLength)));
}

// The same keys alone, as a text that begins with them: other splits and so other sums, and the
// same values but for rounding.
TEST_P(WindowTest, IsCloseToATextThatBeginsWithTheWindow) {
  auto device = make_device(isa());
  const Tokens tokens = make_tokens(shape(), kWindowedLength, 600);
  const std::vector<BlockId> table = scattered_table(44);
  Cache cache(shape());
  const std::vector<float> out = cache.run(*device, tokens, table, 0, kWindowedLength);
  for (const int position : {kWindowedLength - 1, 512, 511, 300, 3}) {
    const int first = std::max(0, position + 1 - shape().window);
    Tokens rest;
    rest.q.assign(tokens.q.begin() + first * width(), tokens.q.end());
    rest.k.assign(tokens.k.begin() + first * kv_width(), tokens.k.end());
    rest.v.assign(tokens.v.begin() + first * kv_width(), tokens.v.end());
    Shape full = shape();
    full.window = 0;
    Cache alone(full);
    const auto expected = alone.run(*device, rest, table, 0, position + 1 - first);
    for (int i = 0; i < width(); ++i) {
      ASSERT_NEAR(out[static_cast<std::size_t>(position * width() + i)],
                  expected[expected.size() - static_cast<std::size_t>(width() - i)], 5e-6)
          << position;
    }
  }
}

std::vector<std::tuple<std::string, KvDType, int, int>> window_params() {
  std::vector<std::tuple<std::string, KvDType, int, int>> params;
  for (const std::string& isa : available_isas()) {
    for (const int window : {1, 20, 256, 301})
      params.emplace_back(isa, KvDType::kBF16, 32, window);
    params.emplace_back(isa, KvDType::kF32, 20, 37);
  }
  return params;
}

INSTANTIATE_TEST_SUITE_P(Isas, WindowTest, ::testing::ValuesIn(window_params()),
                         [](const auto& info) {
                           return std::get<0>(info.param) + "_" +
                                  std::to_string(std::get<2>(info.param)) + "_window_" +
                                  std::to_string(std::get<3>(info.param));
                         });

}  // namespace
}  // namespace thaw::ops
