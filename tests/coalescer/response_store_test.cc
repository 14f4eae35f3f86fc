#include "coalescer/core/response_store.h"

#include <memory>
#include <string>

#include <gtest/gtest.h>

#include "tests/base/manual_clock.h"

namespace thaw::coalescer {
namespace {

using std::chrono::seconds;

StoredResponse response(const std::string& id, const std::string& tenant = "t",
                        std::size_t body_bytes = 0) {
  StoredResponse made;
  made.id = id;
  made.tenant = tenant;
  made.body = std::string(body_bytes, 'x');
  return made;
}

TEST(ResponseStoreTest, OnlyItsTenantFindsAndErasesAResponse) {
  ManualClock clock;
  ResponseStore store({}, &clock);
  store.put(response("r1", "anna"));
  EXPECT_EQ(store.find("berta", "r1"), nullptr);
  EXPECT_FALSE(store.erase("berta", "r1"));
  ASSERT_NE(store.find("anna", "r1"), nullptr);
  EXPECT_TRUE(store.erase("anna", "r1"));
  EXPECT_EQ(store.find("anna", "r1"), nullptr);
  EXPECT_FALSE(store.erase("anna", "r1"));
  EXPECT_EQ(store.bytes(), 0U);
  EXPECT_EQ(store.num_dropped(), 0U);
}

TEST(ResponseStoreTest, WhatWasNotUsedForLongestGoesFirst) {
  ManualClock clock;
  ResponseLimits limits;
  limits.max_responses = 3;
  ResponseStore store(limits, &clock);
  for (const char* id : {"r1", "r2", "r3"})
    store.put(response(id));
  ASSERT_NE(store.find("t", "r1"), nullptr);
  store.put(response("r4"));
  EXPECT_EQ(store.size(), 3U);
  EXPECT_EQ(store.find("t", "r2"), nullptr);
  for (const char* id : {"r1", "r3", "r4"})
    EXPECT_NE(store.find("t", id), nullptr) << id;
  EXPECT_EQ(store.num_dropped(), 1U);
}

TEST(ResponseStoreTest, BytesOfEverythingAreCounted) {
  ManualClock clock;
  ResponseLimits limits;
  limits.max_bytes = 10000;
  ResponseStore store(limits, &clock);
  auto state = std::make_shared<SessionState>();
  state->tokens.resize(1000);
  StoredResponse with_line = response("line");
  with_line.line = state;
  store.put(std::move(with_line));
  EXPECT_GT(store.bytes(), 4000U);
  store.put(response("big", "t", 5500));
  EXPECT_EQ(store.find("t", "line"), nullptr) << "both have no room";
  EXPECT_NE(store.find("t", "big"), nullptr);
  store.put(response("too big", "t", 20000));
  EXPECT_EQ(store.find("t", "too big"), nullptr);
  EXPECT_NE(store.find("t", "big"), nullptr) << "what is not kept makes no room";
  EXPECT_LE(store.bytes(), 10000U);
}

TEST(ResponseStoreTest, TimeIsOverUnlessItIsUsed) {
  ManualClock clock;
  ResponseLimits limits;
  limits.ttl = seconds(100);
  ResponseStore store(limits, &clock);
  store.put(response("used"));
  store.put(response("unused"));
  clock.advance(seconds(60));
  EXPECT_NE(store.find("t", "used"), nullptr);
  clock.advance(seconds(60));
  EXPECT_NE(store.find("t", "used"), nullptr);
  EXPECT_EQ(store.find("t", "unused"), nullptr);
  clock.advance(seconds(100));
  store.expire();
  EXPECT_EQ(store.size(), 0U);
  EXPECT_EQ(store.bytes(), 0U);
}

TEST(ResponseStoreTest, TheSameIdReplaces) {
  ManualClock clock;
  ResponseStore store({}, &clock);
  store.put(response("r", "t", 100));
  const std::uint64_t before = store.bytes();
  store.put(response("r", "t", 50));
  EXPECT_EQ(store.size(), 1U);
  EXPECT_EQ(store.bytes(), before - 50);
  EXPECT_EQ(store.find("t", "r")->body.size(), 50U);
}

TEST(ResponseStoreTest, NoneAreKeptWhereNoneMayBe) {
  ManualClock clock;
  ResponseLimits limits;
  limits.max_responses = 0;
  ResponseStore none(limits, &clock);
  none.put(response("r"));
  EXPECT_EQ(none.find("t", "r"), nullptr);
  limits = {};
  limits.max_bytes = 0;
  ResponseStore no_bytes(limits, &clock);
  no_bytes.put(response("r"));
  EXPECT_EQ(no_bytes.find("t", "r"), nullptr);
}

TEST(ResponseStoreTest, ItemsAreFoundOnBothSides) {
  StoredResponse made = response("r");
  made.input = {{"in", "1"}};
  made.output = {{"out", "2"}};
  ASSERT_NE(made.find_item("in"), nullptr);
  EXPECT_EQ(*made.find_item("in"), "1");
  EXPECT_EQ(*made.find_item("out"), "2");
  EXPECT_EQ(made.find_item("other"), nullptr);
}

}  // namespace
}  // namespace thaw::coalescer
