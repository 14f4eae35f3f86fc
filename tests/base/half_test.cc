#include "engine/base/half.h"

#include <cmath>
#include <limits>

#include <gtest/gtest.h>

namespace thaw {
namespace {

TEST(Half, EveryF16RoundTrips) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    const float value = f16_to_float(half);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(f16_to_float(float_to_f16(value)))) << bits;
    } else {
      EXPECT_EQ(float_to_f16(value), half) << bits;
    }
  }
}

TEST(Half, F16RoundsToNearestEven) {
  EXPECT_EQ(f16_to_float(float_to_f16(1.0F + 0x1.0p-11F)), 1.0F);  // tie, even below
  EXPECT_EQ(f16_to_float(float_to_f16(1.0F + 0x1.8p-10F)), 1.0F + 0x1.0p-9F);  // tie, even above
  EXPECT_EQ(f16_to_float(float_to_f16(65519.0F)), 65504.0F);
  EXPECT_TRUE(std::isinf(f16_to_float(float_to_f16(65520.0F))));
  EXPECT_EQ(float_to_f16(0x1.0p-25F), 0);  // tie between 0 and the least subnormal
}

TEST(Half, EveryBf16RoundTrips) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = bf16_to_float(static_cast<std::uint16_t>(bits));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(bf16_to_float(float_to_bf16(value)))) << bits;
    } else {
      EXPECT_EQ(float_to_bf16(value), bits);
    }
  }
}

TEST(Half, Bf16RoundsToNearestEven) {
  EXPECT_EQ(bf16_to_float(float_to_bf16(1.0F + 0x1.0p-8F)), 1.0F);
  EXPECT_EQ(bf16_to_float(float_to_bf16(1.0F + 0x1.8p-7F)), 1.0F + 0x1.0p-6F);
  EXPECT_TRUE(std::isinf(bf16_to_float(float_to_bf16(std::numeric_limits<float>::max()))));
}

}  // namespace
}  // namespace thaw
