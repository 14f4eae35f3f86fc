#include "engine/base/random.h"

#include <gtest/gtest.h>

namespace thaw {
namespace {

// Known answers of the Random123 distribution for philox4x32-10.
TEST(Philox, KnownAnswers) {
  EXPECT_EQ(philox4x32(0, {0, 0, 0, 0}),
            (std::array<std::uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32(~0ULL, {~0U, ~0U, ~0U, ~0U}),
            (std::array<std::uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
}

TEST(TokenUniform, InRangeAndKeyedByEverything) {
  double sum = 0;
  for (int i = 0; i < 10000; ++i) {
    const double draw = token_uniform(42, 0, static_cast<std::uint64_t>(i));
    ASSERT_GE(draw, 0.0);
    ASSERT_LT(draw, 1.0);
    sum += draw;
  }
  EXPECT_NEAR(sum / 10000, 0.5, 0.02);
  EXPECT_NE(token_uniform(1, 0, 0), token_uniform(2, 0, 0));
  EXPECT_NE(token_uniform(1, 0, 0), token_uniform(1, 1, 0));
  EXPECT_NE(token_uniform(1, 0, 0), token_uniform(1, 0, 1));
}

}  // namespace
}  // namespace thaw
