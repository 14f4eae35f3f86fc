#include "engine/ops/linear.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include "tests/ops/ops_test_util.h"

namespace thaw::ops {
namespace {

using namespace testing;  // NOLINT: the tests' own helpers

std::vector<float> run_linear(Device& device, const TestWeight& weight, const std::vector<float>& x,
                              int num_rows) {
  std::vector<float> out(static_cast<std::size_t>(num_rows * weight.view.rows), -77.0F);
  const LinearOutput output{weight.view, out.data()};
  linear(device, x.data(), num_rows, std::span(&output, 1));
  return out;
}

std::int64_t unit_of(DType dtype) {
  return std::max(checkpoint::dtype_block_elements(dtype), 1);
}

class LinearTest : public ::testing::TestWithParam<std::tuple<std::string, DType>> {
 protected:
  std::string isa() const { return std::get<0>(GetParam()); }
  DType dtype() const { return std::get<1>(GetParam()); }
  /// Column counts with tails where the format allows them.
  std::vector<std::int64_t> column_counts() const {
    if (unit_of(dtype()) == 256) return {256, 768};
    if (unit_of(dtype()) == 32) return {32, 96, 576};
    return {1, 7, 64, 131};
  }
};

TEST_P(LinearTest, EveryRowIsAStranger) {
  auto device = make_device(isa());
  for (const std::int64_t cols : column_counts()) {
    for (const std::int64_t rows : {1, 15, 16, 40}) {
      const TestWeight weight = make_weight(dtype(), rows, cols, 11);
      const int num_rows = 37;
      const std::vector<float> x = random_floats(static_cast<std::size_t>(num_rows * cols), 5);
      const std::vector<float> together = run_linear(*device, weight, x, num_rows);
      for (const int chunk : {1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 16, 17, 36}) {
        std::vector<float> pieces;
        for (int row = 0; row < num_rows; row += chunk) {
          const int count = std::min(chunk, num_rows - row);
          const std::vector<float> part(x.begin() + row * cols, x.begin() + (row + count) * cols);
          const std::vector<float> out = run_linear(*device, weight, part, count);
          pieces.insert(pieces.end(), out.begin(), out.end());
        }
        ASSERT_TRUE(same_bits(pieces, together))
            << "chunks of " << chunk << ", " << rows << " x " << cols;
      }
    }
  }
}

TEST_P(LinearTest, EqualsGenericInEveryBit) {
  auto device = make_device(isa());
  auto generic = make_device("generic");
  for (const std::int64_t cols : column_counts()) {
    const TestWeight weight = make_weight(dtype(), 50, cols, 21);
    const std::vector<float> x = random_floats(static_cast<std::size_t>(19 * cols), 6, 3.0F);
    ASSERT_TRUE(same_bits(run_linear(*device, weight, x, 19), run_linear(*generic, weight, x, 19)))
        << cols;
  }
}

TEST_P(LinearTest, ThreadsChangeNothing) {
  auto one = make_device(isa());
  const std::int64_t cols = unit_of(dtype()) == 256 ? 512 : 576;
  const TestWeight weight = make_weight(dtype(), 333, cols, 31);
  for (const int num_rows : {1, 3, 33}) {
    const std::vector<float> x = random_floats(static_cast<std::size_t>(num_rows * cols), 7);
    const std::vector<float> expected = run_linear(*one, weight, x, num_rows);
    for (const int threads : {2, 3}) {
      auto many = make_device(isa(), threads);
      ASSERT_TRUE(same_bits(run_linear(*many, weight, x, num_rows), expected))
          << threads << " threads, " << num_rows << " rows";
    }
  }
}

// Error against a double-precision product, relative to sum |w x|. Float formats only round sums;
// the quantised ones round each activation to 1/254 of its block's largest, errors average out.
TEST_P(LinearTest, IsCloseToDoublePrecision) {
  const double tolerance = unit_of(dtype()) == 1 ? 1e-6 : 6e-3;
  auto device = make_device(isa());
  const std::int64_t cols = unit_of(dtype()) == 256 ? 1536 : 1536;
  const TestWeight weight = make_weight(dtype(), 48, cols, 41);
  const std::vector<float> x = random_floats(static_cast<std::size_t>(5 * cols), 8);
  const std::vector<float> out = run_linear(*device, weight, x, 5);
  for (int t = 0; t < 5; ++t) {
    for (std::int64_t r = 0; r < 48; ++r) {
      double exact = 0;
      double size = 0;
      for (std::int64_t k = 0; k < cols; ++k) {
        const double term = static_cast<double>(weight.values[r * cols + k]) * x[t * cols + k];
        exact += term;
        size += std::abs(term);
      }
      ASSERT_NEAR(out[t * 48 + r], exact, tolerance * size) << "row " << t << " output " << r;
    }
  }
}

TEST_P(LinearTest, NanAndInfinityReachEveryOutputOfTheirRowOnly) {
  auto device = make_device(isa());
  const std::int64_t cols = unit_of(dtype()) == 256 ? 512 : 96;
  const TestWeight weight = make_weight(dtype(), 20, cols, 51);
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
        -std::numeric_limits<float>::infinity()}) {
    std::vector<float> x = random_floats(static_cast<std::size_t>(3 * cols), 9);
    const std::vector<float> clean = run_linear(*device, weight, x, 3);
    x[static_cast<std::size_t>(cols + 40)] = bad;
    const std::vector<float> out = run_linear(*device, weight, x, 3);
    for (std::size_t r = 0; r < 20; ++r) {
      EXPECT_EQ(out[r], clean[r]);
      EXPECT_EQ(out[40 + r], clean[40 + r]);
      EXPECT_FALSE(std::isfinite(out[20 + r])) << r;
    }
  }
}

TEST_P(LinearTest, EmbeddingIsTheStoredRow) {
  auto device = make_device(isa(), 2);
  const std::int64_t cols = unit_of(dtype()) == 256 ? 512 : 96;
  const TestWeight table = make_weight(dtype(), 37, cols, 61);
  const std::vector<std::int32_t> ids = {0, 36, 15, 16, 15, 31};
  std::vector<float> out(ids.size() * static_cast<std::size_t>(cols));
  embedding(*device, table.view, ids, out.data());
  for (std::size_t i = 0; i < ids.size(); ++i) {
    for (std::int64_t k = 0; k < cols; ++k)
      ASSERT_EQ(out[i * cols + k], table.values[ids[i] * cols + k]) << ids[i] << ", " << k;
  }
}

TEST_P(LinearTest, ReferenceModeExpandsToFloat) {
  auto device = make_device(isa());
  const std::int64_t cols = unit_of(dtype()) == 256 ? 256 : 64;
  const TestWeight weight = make_weight(dtype(), 18, cols, 71, ComputeMode::kExact32);
  ASSERT_EQ(weight.view.packing, Packing::kPanelF32);
  const std::vector<float> x = random_floats(static_cast<std::size_t>(2 * cols), 10);
  const std::vector<float> out = run_linear(*device, weight, x, 2);
  for (std::int64_t t = 0; t < 2; ++t) {
    for (std::int64_t r = 0; r < 18; ++r) {
      float acc = 0.0F;  // the documented order, one fma a column
      for (std::int64_t k = 0; k < cols; ++k)
        acc = std::fma(weight.values[r * cols + k], x[t * cols + k], acc);
      ASSERT_EQ(std::bit_cast<std::uint32_t>(out[t * 18 + r]), std::bit_cast<std::uint32_t>(acc));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, LinearTest,
                         ::testing::Combine(::testing::ValuesIn(available_isas()),
                                            ::testing::ValuesIn(kAllDTypes)),
                         [](const auto& info) {
                           return std::get<0>(info.param) + "_" +
                                  std::string(checkpoint::dtype_name(std::get<1>(info.param)));
                         });

class LinearRoundingTest : public ::testing::TestWithParam<std::string> {};

// A weight row of ones shows what the activations were rounded to.
TEST_P(LinearRoundingTest, ExtremeActivations) {
  auto device = make_device(GetParam());
  auto generic = make_device("generic");
  const TestWeight weight = make_weight(DType::kQ8_0, 16, 32, 81);
  std::vector<std::vector<float>> inputs;
  inputs.emplace_back(32, 0.0F);
  inputs.emplace_back(32, -0.0F);
  inputs.emplace_back(32, 1e-45F);  // below 2^-100: rounded to zero
  inputs.emplace_back(32, 0x1p-99F);
  inputs.emplace_back(32, std::numeric_limits<float>::max());
  inputs.emplace_back(32, -std::numeric_limits<float>::max());
  inputs.push_back(random_floats(32, 1, 1e30F));
  inputs.push_back(random_floats(32, 2, 1e-25F));
  std::vector<float> ties(32);
  for (int i = 0; i < 32; ++i)
    ties[static_cast<std::size_t>(i)] = static_cast<float>(i) + 0.5F;
  ties[31] = 127.0F;  // scale 1: the others are ties
  inputs.push_back(ties);
  for (const std::vector<float>& x : inputs) {
    const std::vector<float> out = run_linear(*device, weight, x, 1);
    ASSERT_TRUE(same_bits(out, run_linear(*generic, weight, x, 1))) << x[0];
  }
  EXPECT_EQ(run_linear(*device, weight, inputs[0], 1)[0], 0.0F);
  EXPECT_EQ(run_linear(*device, weight, inputs[2], 1)[0], 0.0F);
}

TEST_P(LinearRoundingTest, SeveralWeightsOfOneInput) {
  auto device = make_device(GetParam(), 2);
  const TestWeight a = make_weight(DType::kQ4_1, 40, 64, 1);
  const TestWeight b = make_weight(DType::kF32, 17, 64, 2);
  const TestWeight c = make_weight(DType::kQ8_0, 5, 64, 3);
  const std::vector<float> x = random_floats(20 * 64, 4);
  std::vector<float> out_a(20 * 40), out_b(20 * 17), out_c(20 * 5);
  const LinearOutput outputs[] = {
      {a.view, out_a.data()}, {b.view, out_b.data()}, {c.view, out_c.data()}};
  linear(*device, x.data(), 20, outputs);
  EXPECT_TRUE(same_bits(out_a, run_linear(*device, a, x, 20)));
  EXPECT_TRUE(same_bits(out_b, run_linear(*device, b, x, 20)));
  EXPECT_TRUE(same_bits(out_c, run_linear(*device, c, x, 20)));
}

INSTANTIATE_TEST_SUITE_P(Isas, LinearRoundingTest, ::testing::ValuesIn(available_isas()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace thaw::ops
