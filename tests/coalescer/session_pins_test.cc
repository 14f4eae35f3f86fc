#include "coalescer/core/session_pins.h"

#include <gtest/gtest.h>

namespace thaw::coalescer {
namespace {

using Names = std::vector<std::string>;

TEST(SessionPins, TheLeastRecentlyUsedGoesFirst) {
  SessionPins pins(100);
  EXPECT_EQ(pins.kept("a", 16, 40, "A"), Names{});
  EXPECT_EQ(pins.kept("b", 16, 40, "B"), Names{});
  pins.touch("a");
  EXPECT_EQ(pins.kept("c", 16, 40, "C"), Names{"b"});
  EXPECT_EQ(pins.bytes(), 80U);
  EXPECT_TRUE(pins.find("b")->given_up);
  EXPECT_EQ(pins.find("b")->tokens, 0U);
  EXPECT_EQ(pins.num_pinned(), 2U);
  EXPECT_EQ(pins.num_given_up(), 1U);
}

TEST(SessionPins, SharedBytesCountOnce) {
  SessionPins pins(100);
  for (const char* session : {"a", "b", "c", "d"})
    EXPECT_EQ(pins.kept(session, 32, 60, "trunk"), Names{});
  EXPECT_EQ(pins.bytes(), 60U);
  pins.forget("a");
  pins.erase("b");
  EXPECT_EQ(pins.bytes(), 60U);
  EXPECT_EQ(pins.find("b"), nullptr);
  // One goes on: what the others share is still one.
  EXPECT_EQ(pins.kept("c", 48, 40, "longer"), Names{});
  EXPECT_EQ(pins.bytes(), 100U);
  pins.forget("d");
  EXPECT_EQ(pins.bytes(), 40U);
}

// The same tokens may be held by a trunk of their own, or by a longer one of others.
TEST(SessionPins, TrunksOfDifferentSizesLeaveNothingBehind) {
  SessionPins pins(100);
  EXPECT_EQ(pins.kept("a", 16, 10, "t"), Names{});
  EXPECT_EQ(pins.kept("b", 16, 90, "t"), Names{}) << "the first one's word counts";
  EXPECT_EQ(pins.bytes(), 10U);
  pins.erase("a");
  EXPECT_EQ(pins.bytes(), 10U);
  pins.erase("b");
  EXPECT_EQ(pins.bytes(), 0U);
  EXPECT_EQ(pins.kept("c", 16, 5, "t"), Names{});
  EXPECT_EQ(pins.bytes(), 5U);
}

TEST(SessionPins, WhatIsLargerThanTheBudgetGoesItself) {
  SessionPins pins(100);
  EXPECT_EQ(pins.kept("a", 16, 40, "A"), Names{});
  EXPECT_EQ(pins.kept("b", 160, 101, "B"), Names{"b"});
  EXPECT_EQ(pins.find("a")->tokens, 16U);
  EXPECT_EQ(pins.bytes(), 40U);
}

TEST(SessionPins, RoomIsMadeOfTheOthers) {
  SessionPins pins(1000);
  EXPECT_EQ(pins.make_room("a"), std::nullopt);
  static_cast<void>(pins.kept("a", 16, 40, "A"));
  static_cast<void>(pins.kept("b", 16, 40, "B"));
  EXPECT_EQ(pins.make_room("a"), "b");
  EXPECT_EQ(pins.make_room("a"), std::nullopt);
  EXPECT_EQ(pins.bytes(), 40U);
}

TEST(SessionPins, ANewTrunkTakesThePlaceOfTheOld) {
  SessionPins pins(100);
  static_cast<void>(pins.kept("a", 16, 40, "A"));
  EXPECT_EQ(pins.kept("a", 32, 80, "AA"), Names{});
  EXPECT_EQ(pins.bytes(), 80U);
  EXPECT_EQ(pins.kept("a", 32, 80, "AA"), Names{});
  EXPECT_EQ(pins.bytes(), 80U);
}

}  // namespace
}  // namespace thaw::coalescer
