#include "engine/base/result.h"

#include <memory>

#include <gtest/gtest.h>

namespace thaw {
namespace {

Result<int> half_of(int value) {
  if (value % 2 != 0) return make_error(Errc::kInvalidArgument, "value is odd");
  return value / 2;
}

TEST(Result, HoldsValueOrError) {
  EXPECT_EQ(*half_of(8), 4);
  const auto failed = half_of(7);
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().code, Errc::kInvalidArgument);
  EXPECT_EQ(failed.error().to_string(), "invalid_argument: value is odd");
  EXPECT_NE(std::string(failed.error().file).find("result_test.cc"), std::string::npos);
  EXPECT_THROW((void)failed.value(), Exception);
}

TEST(Result, MovesOutOfTemporaries) {
  Result<std::unique_ptr<int>> made(std::make_unique<int>(3));
  const std::unique_ptr<int> taken = std::move(made).value();
  EXPECT_EQ(*taken, 3);
}

TEST(Result, VoidForm) {
  EXPECT_TRUE(Result<void>());
  EXPECT_FALSE(Result<void>(make_error(Errc::kIo, "no")));
}

}  // namespace
}  // namespace thaw
