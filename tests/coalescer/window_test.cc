#include "coalescer/core/window.h"

#include <gtest/gtest.h>

namespace thaw::coalescer {
namespace {

using std::chrono::milliseconds;

GenerateRequest request(RequestId id) {
  GenerateRequest made;
  made.id = id;
  return made;
}

TEST(Window, ALoneRequestOnAnIdlePoolDoesNotWait) {
  Window window(milliseconds(2));
  const Clock::TimePoint now{};
  EXPECT_FALSE(window.deadline());
  window.add(request(1), now, /*is_lone=*/true);
  EXPECT_EQ(window.deadline(), now);
}

TEST(Window, CollectsUntilTheFirstRequestsDeadline) {
  Window window(milliseconds(2));
  const Clock::TimePoint now{};
  window.add(request(1), now, /*is_lone=*/false);
  window.add(request(2), now + milliseconds(1), /*is_lone=*/false);
  EXPECT_EQ(window.deadline(), now + milliseconds(2));
  const auto taken = window.take();
  ASSERT_EQ(taken.size(), 2U);
  EXPECT_EQ(taken[0].id, 1U);
  EXPECT_EQ(taken[1].id, 2U);
  EXPECT_FALSE(window.deadline());
  EXPECT_TRUE(window.take().empty());
}

TEST(Window, IsExtendedOnlySoFarAndNeverForALoneRequest) {
  Window window(milliseconds(2));
  const Clock::TimePoint now{};
  window.add(request(1), now, /*is_lone=*/false);
  const auto longest = now + milliseconds(2) + Window::kMostExtension;
  for (Clock::TimePoint due = now + milliseconds(2); due < longest; due += Window::kExtension) {
    EXPECT_EQ(window.deadline(), due);
    EXPECT_TRUE(window.extend());
  }
  EXPECT_FALSE(window.extend());
  EXPECT_EQ(window.deadline(), longest);
  window.take();
  window.add(request(2), now, /*is_lone=*/true);
  EXPECT_FALSE(window.extend());
  EXPECT_EQ(window.deadline(), now);
}

TEST(Window, RemovesACancelledRequest) {
  Window window(milliseconds(2));
  window.add(request(1), {}, false);
  EXPECT_FALSE(window.remove(2));
  EXPECT_TRUE(window.remove(1));
  EXPECT_FALSE(window.deadline());
}

}  // namespace
}  // namespace thaw::coalescer
