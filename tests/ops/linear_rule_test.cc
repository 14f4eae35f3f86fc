// The products of packed integers against docs/exactness.md: the stored blocks read one quant at a
// time, and the page's sums in plain scalar code. Nothing here knows how a panel is laid out.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <tuple>

#include "engine/ops/linear.h"
#include "tests/ops/ops_test_util.h"

namespace thaw::ops {
namespace {

using namespace testing;  // NOLINT: the tests' own helpers

/// 32 columns of one output. Without two levels of scales d is the block's scale and `scales` 1.
struct RuleBlock {
  std::array<int, 32> w{};
  float d = 0;
  float minimum = 0;  ///< mw, or -dmin with two levels in halves
  std::array<int, 2> scales{1, 1};  ///< of columns 0 .. 15 and 16 .. 31
  std::array<int, 2> minima{};
};

/// How a packing adds a block.
enum class Order { kScaleOnly, kScaleAndMinimum, kTwoScales, kTwoLevels, kTwoLevelsAndMinimum };

Order order_of(DType dtype) {
  switch (dtype) {
    case DType::kQ8_0:
    case DType::kIQ4_NL:
      return Order::kScaleOnly;
    case DType::kQ6_K:
      return Order::kTwoScales;
    case DType::kQ3_K:
      return Order::kTwoLevels;
    case DType::kQ2_K:
      return Order::kTwoLevelsAndMinimum;
    default:
      return Order::kScaleAndMinimum;
  }
}

class StoredRow {
 public:
  explicit StoredRow(const std::byte* row) : row_(reinterpret_cast<const std::uint8_t*>(row)) {}

  /// Block `b` of 32 columns.
  RuleBlock block(DType dtype, std::int64_t b) const {
    const std::uint8_t* p =
        row_ + (checkpoint::dtype_block_elements(dtype) == 256 ? b / 8 : b) *
                   static_cast<std::int64_t>(checkpoint::dtype_block_bytes(dtype));
    const int j = static_cast<int>(b % 8);
    RuleBlock out;
    for (int i = 0; i < 32; ++i)
      out.w[static_cast<std::size_t>(i)] = quant(dtype, p, j, i);
    switch (dtype) {
      case DType::kQ4_0:
        out.d = half(p);
        out.minimum = -8 * out.d;
        break;
      case DType::kQ5_0:
        out.d = half(p);
        out.minimum = -16 * out.d;
        break;
      case DType::kQ4_1:
      case DType::kQ5_1:
        out.d = half(p);
        out.minimum = half(p + 2);
        break;
      case DType::kQ4_K:
      case DType::kQ5_K: {
        // Scales and minima of 6 bits: 4-7 have their top bits above those of 0-3.
        const std::uint8_t* s = p + 4;
        const int scale = j < 4 ? s[j] & 63 : (s[j + 4] & 15) + (s[j - 4] >> 6) * 16;
        const int minimum = j < 4 ? s[j + 4] & 63 : (s[j + 4] >> 4) + (s[j] >> 6) * 16;
        out.d = half(p) * static_cast<float>(scale);
        out.minimum = -(half(p + 2) * static_cast<float>(minimum));
        break;
      }
      case DType::kQ6_K:
        out.d = half(p + 208);
        out.scales = {static_cast<std::int8_t>(p[192 + 2 * j]),
                      static_cast<std::int8_t>(p[193 + 2 * j])};
        break;
      case DType::kQ3_K:
        out.d = half(p + 108);
        out.scales = {scale_q3(p + 96, 2 * j), scale_q3(p + 96, 2 * j + 1)};
        break;
      case DType::kQ2_K:
        out.d = half(p + 80);
        out.minimum = -half(p + 82);
        out.scales = {p[2 * j] & 15, p[2 * j + 1] & 15};
        out.minima = {p[2 * j] >> 4, p[2 * j + 1] >> 4};
        break;
      default:
        out.d = half(p);
        break;
    }
    return out;
  }

 private:
  static float half(const std::uint8_t* p) {
    return f16_to_float(static_cast<std::uint16_t>(p[0] + 256 * p[1]));
  }
  static int scale_q3(const std::uint8_t* s, int i) {
    return (i < 8 ? s[i] & 15 : s[i - 8] >> 4) + (s[8 + i % 4] >> 2 * (i / 4) & 3) * 16 - 32;
  }
  static int nibble(const std::uint8_t* p, int i) { return i < 16 ? p[i] & 15 : p[i - 16] >> 4; }
  static int bit(const std::uint8_t* p, int i) { return p[i / 8] >> i % 8 & 1; }
  /// Column 32 j + i of the block at p.
  static int quant(DType dtype, const std::uint8_t* p, int j, int i) {
    const int k = 32 * j + i;
    const int pair_index = 32 * (k / 128) + i;
    switch (dtype) {
      case DType::kQ8_0:
        return static_cast<std::int8_t>(p[2 + i]);
      case DType::kQ4_0:
        return nibble(p + 2, i);
      case DType::kQ4_1:
        return nibble(p + 4, i);
      case DType::kQ5_0:
        return nibble(p + 6, i) + 16 * bit(p + 2, i);
      case DType::kQ5_1:
        return nibble(p + 8, i) + 16 * bit(p + 4, i);
      case DType::kQ4_K:
        return p[16 + 32 * (j / 2) + i] >> 4 * (j % 2) & 15;
      case DType::kQ5_K:
        return (p[48 + 32 * (j / 2) + i] >> 4 * (j % 2) & 15) + 16 * (p[16 + i] >> j & 1);
      case DType::kQ6_K:
        return (p[64 * (j / 4) + 32 * (j % 2) + i] >> 4 * (j % 4 / 2) & 15) +
               16 * (p[128 + 32 * (j / 4) + i] >> 2 * (j % 4) & 3) - 32;
      case DType::kQ2_K:
        return p[16 + pair_index] >> 2 * (j % 4) & 3;
      case DType::kQ3_K:
        return (p[32 + pair_index] >> 2 * (j % 4) & 3) + 4 * (p[i] >> j & 1) - 4;
      case DType::kIQ4_NL: {
        constexpr int kValues[] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                   1,    13,   25,  38,  53,  69,  89,  113};
        return kValues[nibble(p + 2, i)];
      }
      default:
        return 0;
    }
  }

  const std::uint8_t* row_;
};

/// 32 activations rounded by the page's rule.
struct Rounded {
  explicit Rounded(const float* x) {
    float largest = 0;
    for (int i = 0; i < 32; ++i)
      largest = std::max(largest, std::abs(x[i]));
    if (largest < 0x1p-100F) return;
    scale = largest / 127.0F;
    for (int i = 0; i < 32; ++i) {
      q[static_cast<std::size_t>(i)] = static_cast<int>(std::nearbyint(x[i] * (127.0F / largest)));
      sums[i < 16 ? 0 : 1] += q[static_cast<std::size_t>(i)];
    }
  }
  std::array<int, 32> q{};
  std::array<int, 2> sums{};
  float scale = 0;
};

float add_block(Order order, const RuleBlock& block, const Rounded& x, float acc) {
  std::array<int, 2> halves{};
  for (std::size_t k = 0; k < 32; ++k)
    halves[k / 16] += block.w[k] * x.q[k];
  const auto real = [](int value) { return static_cast<float>(value); };
  switch (order) {
    case Order::kScaleOnly:
      return std::fma(real(halves[0] + halves[1]), block.d * x.scale, acc);
    case Order::kScaleAndMinimum:
      acc = std::fma(real(halves[0] + halves[1]), block.d * x.scale, acc);
      return std::fma(block.minimum, x.scale * real(x.sums[0] + x.sums[1]), acc);
    case Order::kTwoScales:
      for (std::size_t h = 0; h < 2; ++h)
        acc = std::fma(real(halves[h]), block.d * real(block.scales[h]) * x.scale, acc);
      return acc;
    case Order::kTwoLevels:
    case Order::kTwoLevelsAndMinimum:
      break;
  }
  const int sum = halves[0] * block.scales[0] + halves[1] * block.scales[1];
  acc = std::fma(real(sum), block.d * x.scale, acc);
  if (order == Order::kTwoLevels) return acc;
  const int shift = x.sums[0] * block.minima[0] + x.sums[1] * block.minima[1];
  return std::fma(real(shift), block.minimum * x.scale, acc);
}

class LinearRuleTest : public ::testing::TestWithParam<std::tuple<std::string, DType>> {};

TEST_P(LinearRuleTest, PackedEqualsUnpackedInEveryBit) {
  const auto& [isa, dtype] = GetParam();
  auto device = make_device(isa);
  ThreadPool threads(1);
  constexpr std::int64_t kOutputs = 33;
  constexpr int kMostRows = 17;
  const std::int64_t cols = checkpoint::dtype_block_elements(dtype) == 256 ? 512 : 96;
  const std::vector<std::byte> stored = random_matrix(dtype, kOutputs, cols, 91);
  const std::vector<float> x = random_floats(static_cast<std::size_t>(kMostRows * cols), 92, 2.0F);

  std::vector<float> expected(static_cast<std::size_t>(kMostRows * kOutputs));
  const std::size_t row_bytes = stored.size() / kOutputs;
  for (std::int64_t n = 0; n < kOutputs; ++n) {
    const StoredRow row(stored.data() + static_cast<std::size_t>(n) * row_bytes);
    for (std::int64_t b = 0; b < cols / 32; ++b) {
      const RuleBlock block = row.block(dtype, b);
      for (std::int64_t t = 0; t < kMostRows; ++t) {
        float& acc = expected[static_cast<std::size_t>(t * kOutputs + n)];
        acc = add_block(order_of(dtype), block, Rounded(x.data() + t * cols + 32 * b), acc);
      }
    }
  }

  for (const std::int64_t outputs : {std::int64_t{1}, std::int64_t{16}, kOutputs}) {
    const Packing packing = choose_packing(dtype, ComputeMode::kNative);
    std::vector<std::byte> packed(packed_bytes(packing, outputs, cols));
    ASSERT_TRUE(pack_matrix(dtype,
                            std::span(stored).first(static_cast<std::size_t>(outputs) * row_bytes),
                            outputs, cols, packing, packed, threads));
    for (int rows = 1; rows <= kMostRows; ++rows) {
      std::vector<float> out(static_cast<std::size_t>(rows * outputs));
      const LinearOutput output{{packing, outputs, cols, packed.data()}, out.data()};
      linear(*device, x.data(), rows, {&output, 1});
      std::vector<float> wanted;
      for (std::int64_t t = 0; t < rows; ++t)
        wanted.insert(wanted.end(), expected.begin() + t * kOutputs,
                      expected.begin() + t * kOutputs + outputs);
      ASSERT_TRUE(same_bits(out, wanted)) << rows << " rows, " << outputs << " outputs";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Isas, LinearRuleTest,
    ::testing::Combine(::testing::ValuesIn(available_isas()),
                       ::testing::Values(DType::kQ8_0, DType::kQ4_0, DType::kQ4_1, DType::kQ4_K,
                                         DType::kQ6_K, DType::kQ5_0, DType::kQ5_1, DType::kQ5_K,
                                         DType::kQ2_K, DType::kQ3_K, DType::kIQ4_NL)),
    [](const auto& info) {
      return std::get<0>(info.param) + "_" +
             std::string(checkpoint::dtype_name(std::get<1>(info.param)));
    });

}  // namespace
}  // namespace thaw::ops
