#include "engine/ops/elementwise.h"

#include <cmath>
#include <limits>

#include "engine/ops/cpu/kernels.h"
#include "engine/ops/exp.h"
#include "tests/ops/ops_test_util.h"

namespace thaw::ops {
namespace {

using namespace testing;  // NOLINT: the tests' own helpers

class ElementwiseTest : public ::testing::TestWithParam<std::string> {
 protected:
  std::unique_ptr<CpuDevice> device_ = make_device(GetParam());
  std::unique_ptr<CpuDevice> generic_ = make_device("generic");
  std::unique_ptr<CpuDevice> many_ = make_device(GetParam(), 3);
};

TEST_P(ElementwiseTest, RmsNorm) {
  for (const int width : {1, 16, 23, 576}) {
    const int rows = 70;
    const std::vector<float> x = random_floats(static_cast<std::size_t>(rows * width), 1);
    const std::vector<float> weight = random_floats(static_cast<std::size_t>(width), 2);
    std::vector<float> out(x.size()), generic(x.size()), many(x.size()), alone(x.size());
    rms_norm(*device_, x.data(), weight.data(), 1e-5F, rows, width, out.data());
    rms_norm(*generic_, x.data(), weight.data(), 1e-5F, rows, width, generic.data());
    rms_norm(*many_, x.data(), weight.data(), 1e-5F, rows, width, many.data());
    for (int row = 0; row < rows; ++row)
      rms_norm(*device_, &x[row * width], weight.data(), 1e-5F, 1, width, &alone[row * width]);
    EXPECT_TRUE(same_bits(out, generic)) << width;
    EXPECT_TRUE(same_bits(out, many)) << width;
    EXPECT_TRUE(same_bits(out, alone)) << width;
    double squares = 0;
    for (int i = 0; i < width; ++i)
      squares += static_cast<double>(x[i]) * x[i];
    for (int i = 0; i < width; ++i) {
      const double exact = x[i] / std::sqrt(squares / width + 1e-5) * weight[i];
      EXPECT_NEAR(out[i], exact, 1e-6 * std::abs(exact));
    }
    std::vector<float> aliased = x;
    rms_norm(*device_, aliased.data(), weight.data(), 1e-5F, rows, width, aliased.data());
    EXPECT_TRUE(same_bits(aliased, out)) << width;
  }
}

TEST_P(ElementwiseTest, AddAndSwiglu) {
  for (const std::size_t count : {1U, 15U, 16U, 40001U}) {
    const std::vector<float> gate = random_floats(count, 3, 8.0F);
    const std::vector<float> up = random_floats(count, 4);
    std::vector<float> out(count), generic(count), many(count);
    const auto n = static_cast<std::int64_t>(count);
    swiglu(*device_, gate.data(), up.data(), n, out.data());
    swiglu(*generic_, gate.data(), up.data(), n, generic.data());
    swiglu(*many_, gate.data(), up.data(), n, many.data());
    EXPECT_TRUE(same_bits(out, generic));
    EXPECT_TRUE(same_bits(out, many));
    std::vector<float> in_place = gate;
    swiglu(*device_, in_place.data(), up.data(), n, in_place.data());
    EXPECT_TRUE(same_bits(in_place, out));
    std::vector<float> sum = gate;
    add_in_place(*many_, sum.data(), up.data(), n);
    for (std::size_t i = 0; i < count; ++i) {
      const double exact = gate[i] / (1.0 + std::exp(-static_cast<double>(gate[i]))) * up[i];
      ASSERT_NEAR(out[i], exact, 1e-6 * std::abs(exact) + 1e-30);
      ASSERT_EQ(sum[i], gate[i] + up[i]);
    }
  }
}

TEST_P(ElementwiseTest, AddBias) {
  for (const int width : {1, 23, 64, 576}) {
    const int rows = 70;
    const std::vector<float> x = random_floats(static_cast<std::size_t>(rows * width), 5);
    const std::vector<float> bias = random_floats(static_cast<std::size_t>(width), 6);
    std::vector<float> out = x, many = x, expected = x;
    add_bias(*device_, out.data(), bias.data(), rows, width);
    add_bias(*many_, many.data(), bias.data(), rows, width);
    for (int i = 0; i < rows * width; ++i)
      expected[static_cast<std::size_t>(i)] += bias[static_cast<std::size_t>(i % width)];
    EXPECT_TRUE(same_bits(out, expected)) << width;
    EXPECT_TRUE(same_bits(many, expected)) << width;
  }
}

TEST_P(ElementwiseTest, SwigluAtTheEnds) {
  const float infinity = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> gate = {-200.0F, 200.0F, -88.5F, 0.0F, nan, infinity, -3e38F};
  const std::vector<float> up(gate.size(), 2.0F);
  std::vector<float> out(gate.size()), generic(gate.size());
  swiglu(*device_, gate.data(), up.data(), static_cast<std::int64_t>(gate.size()), out.data());
  swiglu(*generic_, gate.data(), up.data(), static_cast<std::int64_t>(gate.size()), generic.data());
  EXPECT_TRUE(same_bits(out, generic));
  EXPECT_NEAR(out[0], 0.0F, 1e-30F);
  EXPECT_EQ(out[1], 400.0F);
  EXPECT_EQ(out[3], 0.0F);
  EXPECT_TRUE(std::isnan(out[4]));
  EXPECT_EQ(out[5], infinity);
}

TEST_P(ElementwiseTest, Rope) {
  constexpr int kHeads = 3;
  constexpr int kHeadDim = 20;
  constexpr int kRotary = 16;
  constexpr int kPositions = 50;
  std::vector<float> cosines, sines;
  for (int p = 0; p < kPositions; ++p) {
    for (int i = 0; i < kRotary / 2; ++i) {
      const double angle = p * std::pow(10000.0, -2.0 * i / kRotary);
      cosines.push_back(static_cast<float>(std::cos(angle)));
      sines.push_back(static_cast<float>(std::sin(angle)));
    }
  }
  std::vector<std::int32_t> positions;
  for (int i = 0; i < 400; ++i)
    positions.push_back((i * 7) % kPositions);
  const std::vector<float> x = random_floats(positions.size() * kHeads * kHeadDim, 5);
  for (const bool half_split : {false, true}) {
    const RopeTable table{cosines.data(), sines.data(), kRotary, half_split};
    std::vector<float> out = x, generic = x, many = x;
    rope(*device_, table, positions, kHeads, kHeadDim, out.data());
    rope(*generic_, table, positions, kHeads, kHeadDim, generic.data());
    rope(*many_, table, positions, kHeads, kHeadDim, many.data());
    EXPECT_TRUE(same_bits(out, generic));
    EXPECT_TRUE(same_bits(out, many));
    for (std::size_t row = 0; row < positions.size(); ++row) {
      for (int head = 0; head < kHeads; ++head) {
        const std::size_t at = (row * kHeads + head) * kHeadDim;
        for (int i = 0; i < kRotary / 2; ++i) {
          const std::size_t a = at + (half_split ? i : 2 * i);
          const std::size_t b = at + (half_split ? i + kRotary / 2 : 2 * i + 1);
          const double c = cosines[positions[row] * kRotary / 2 + i];
          const double s = sines[positions[row] * kRotary / 2 + i];
          ASSERT_NEAR(out[a], x[a] * c - x[b] * s, 1e-6);
          ASSERT_NEAR(out[b], x[a] * s + x[b] * c, 1e-6);
        }
        for (int i = kRotary; i < kHeadDim; ++i)
          ASSERT_EQ(out[at + i], x[at + i]);
      }
    }
  }
}

/// Distance of `value` from `exact` in units of the last place of the float nearest to `exact`.
double ulp_error(float value, double exact) {
  const float nearest = static_cast<float>(exact);
  const double ulp = std::nextafter(nearest, std::numeric_limits<float>::infinity()) - nearest;
  return std::abs(value - exact) / ulp;
}

TEST_P(ElementwiseTest, ExpIsAccurateAndOneFunctionEverywhere) {
  // Every 37th float of the range, both signs: 5 million values and more.
  std::vector<float> x;
  std::vector<float> out;
  double worst = 0;
  const auto flush = [&] {
    out.resize(x.size());
    device_->kernels().exp(x.data(), static_cast<std::int64_t>(x.size()), out.data());
    for (std::size_t i = 0; i < x.size(); ++i) {
      ASSERT_EQ(std::bit_cast<std::uint32_t>(out[i]), std::bit_cast<std::uint32_t>(exp_f32(x[i])))
          << x[i];
      if (x[i] >= -87.0F && x[i] <= 88.0F)
        worst = std::max(worst, ulp_error(out[i], std::exp(static_cast<double>(x[i]))));
    }
    x.clear();
  };
  const std::uint32_t step = GetParam() == "generic" ? 3701 : 37 * 8 + 1;
  for (std::uint32_t bits = 0; bits < std::bit_cast<std::uint32_t>(104.0F); bits += step) {
    x.push_back(std::bit_cast<float>(bits));
    x.push_back(-std::bit_cast<float>(bits));
    if (x.size() >= 100003) flush();
  }
  flush();
  EXPECT_LT(worst, 1.0);
  RecordProperty("worst_ulp_times_1000", static_cast<int>(worst * 1000));
}

TEST_P(ElementwiseTest, ExpAtTheEnds) {
  const float infinity = std::numeric_limits<float>::infinity();
  const std::vector<float> x = {0.0F,
                                -0.0F,
                                -infinity,
                                -1000.0F,
                                -87.0F,
                                -87.00001F,
                                infinity,
                                1000.0F,
                                88.0F,
                                std::bit_cast<float>(0x7fc00001u),
                                -std::bit_cast<float>(0x7fc00001u)};
  std::vector<float> out(x.size());
  device_->kernels().exp(x.data(), static_cast<std::int64_t>(x.size()), out.data());
  EXPECT_EQ(out[0], 1.0F);
  EXPECT_EQ(out[1], 1.0F);
  EXPECT_EQ(out[2], 0.0F);
  EXPECT_EQ(out[3], 0.0F);
  EXPECT_GT(out[4], 0.0F);
  EXPECT_EQ(out[5], 0.0F);
  EXPECT_EQ(out[6], out[8]);
  EXPECT_EQ(out[7], out[8]);
  EXPECT_TRUE(std::isnan(out[9]));
  EXPECT_TRUE(std::isnan(out[10]));
  for (std::size_t i = 0; i < 9; ++i)
    EXPECT_EQ(out[i], exp_f32(x[i]));
  EXPECT_TRUE(std::isnan(exp_f32(x[9])));
}

INSTANTIATE_TEST_SUITE_P(Isas, ElementwiseTest, ::testing::ValuesIn(available_isas()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace thaw::ops
