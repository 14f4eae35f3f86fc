#include <cmath>
#include <tuple>

#include "engine/ops/linear.h"
#include "tests/ops/ops_test_util.h"

namespace thaw::ops {
namespace {

using namespace testing;  // NOLINT: the tests' own helpers

constexpr std::int64_t kOutputs = 50;

std::vector<float> run_two_step(Device& device, const TestWeight& weight,
                                const std::vector<float>& x, int num_rows) {
  std::vector<float> out(static_cast<std::size_t>(num_rows * weight.view.rows), -77.0F);
  const LinearOutput output{weight.view, out.data()};
  linear_two_step(device, x.data(), num_rows, std::span(&output, 1));
  return out;
}

class LinearTwoStepTest : public ::testing::TestWithParam<std::tuple<std::string, DType>> {
 protected:
  std::string isa() const { return std::get<0>(GetParam()); }
  DType dtype() const { return std::get<1>(GetParam()); }
  TestWeight weight() const { return make_weight(dtype(), kOutputs, kCols, 41); }
  static std::vector<float> input(int num_rows) {
    return random_floats(static_cast<std::size_t>(num_rows * kCols), 8);
  }
  static constexpr std::int64_t kCols = 768;
};

TEST_P(LinearTwoStepTest, EveryRowIsAStranger) {
  auto device = make_device(isa());
  const TestWeight w = weight();
  const int num_rows = 37;
  const std::vector<float> x = input(num_rows);
  const std::vector<float> together = run_two_step(*device, w, x, num_rows);
  for (const int chunk : {1, 2, 3, 5, 8, 16, 17, 36}) {
    std::vector<float> pieces;
    for (int row = 0; row < num_rows; row += chunk) {
      const int count = std::min(chunk, num_rows - row);
      const std::vector<float> part(x.begin() + row * kCols, x.begin() + (row + count) * kCols);
      const std::vector<float> out = run_two_step(*device, w, part, count);
      pieces.insert(pieces.end(), out.begin(), out.end());
    }
    ASSERT_TRUE(same_bits(pieces, together)) << "chunks of " << chunk;
  }
}

TEST_P(LinearTwoStepTest, InstructionSetAndThreadsChangeNothing) {
  auto generic = make_device("generic");
  auto three = make_device(isa(), 3);
  const TestWeight w = weight();
  const std::vector<float> x = input(19);
  EXPECT_TRUE(same_bits(run_two_step(*three, w, x, 19), run_two_step(*generic, w, x, 19)));
}

// The second step rounds to 1/254 of what the first leaves over: some 200 times closer than
// linear().
TEST_P(LinearTwoStepTest, IsCloseToDoublePrecision) {
  auto device = make_device(isa());
  const TestWeight w = weight();
  const std::vector<float> x = input(5);
  const std::vector<float> out = run_two_step(*device, w, x, 5);
  for (int t = 0; t < 5; ++t) {
    for (std::int64_t r = 0; r < kOutputs; ++r) {
      double exact = 0;
      double size = 0;
      for (std::int64_t k = 0; k < kCols; ++k) {
        const double term = static_cast<double>(w.values[r * kCols + k]) * x[t * kCols + k];
        exact += term;
        size += std::abs(term);
      }
      ASSERT_NEAR(out[t * kOutputs + r], exact, 3e-5 * size) << "row " << t << " output " << r;
    }
  }
}

TEST_P(LinearTwoStepTest, NanStaysInItsRow) {
  auto device = make_device(isa());
  const TestWeight w = weight();
  std::vector<float> x = input(3);
  const std::vector<float> clean = run_two_step(*device, w, x, 3);
  x[kCols + 100] = std::nanf("");
  const std::vector<float> out = run_two_step(*device, w, x, 3);
  for (std::int64_t r = 0; r < kOutputs; ++r) {
    EXPECT_EQ(out[r], clean[r]);
    EXPECT_TRUE(std::isnan(out[kOutputs + r]));
    EXPECT_EQ(out[2 * kOutputs + r], clean[2 * kOutputs + r]);
  }
}

// A group may hold quantised and float weights of one input.
TEST(LinearTwoStep, MixedGroup) {
  auto device = make_device("generic");
  const TestWeight quantised = make_weight(DType::kQ4_K, 32, 256, 3);
  const TestWeight plain = make_weight(DType::kF32, 16, 256, 4);
  const std::vector<float> x = random_floats(2 * 256, 5);
  std::vector<float> a(2 * 32);
  std::vector<float> b(2 * 16);
  const LinearOutput outputs[] = {{quantised.view, a.data()}, {plain.view, b.data()}};
  linear_two_step(*device, x.data(), 2, outputs);
  EXPECT_TRUE(same_bits(a, run_two_step(*device, quantised, x, 2)));
  std::vector<float> expected(2 * 16);
  const LinearOutput alone{plain.view, expected.data()};
  linear(*device, x.data(), 2, std::span(&alone, 1));
  EXPECT_TRUE(same_bits(b, expected));
}

INSTANTIATE_TEST_SUITE_P(Isas, LinearTwoStepTest,
                         ::testing::Combine(::testing::ValuesIn(available_isas()),
                                            ::testing::ValuesIn(kAllDTypes)),
                         [](const auto& info) {
                           return std::get<0>(info.param) + "_" +
                                  std::string(checkpoint::dtype_name(std::get<1>(info.param)));
                         });

}  // namespace
}  // namespace thaw::ops
