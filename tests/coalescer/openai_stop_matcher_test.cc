#include <random>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "coalescer/openai/stop_matcher.h"

namespace thaw::coalescer {
namespace {

/// The definition: of all matches the one that ends first, of those the longest.
std::pair<std::string, bool> by_definition(const std::string& text,
                                           const std::vector<std::string>& stops) {
  for (std::size_t end = 1; end <= text.size(); ++end) {
    std::size_t longest = 0;
    for (const std::string& stop : stops) {
      if (stop.size() <= end && text.compare(end - stop.size(), stop.size(), stop) == 0)
        longest = std::max(longest, stop.size());
    }
    if (longest > 0) return {text.substr(0, end - longest), true};
  }
  return {text, false};
}

TEST(StopMatcher, HoldsBackOnlyWhatMayBecomeAStop) {
  StopMatcher matcher({"</s>", "STOP"});
  EXPECT_EQ(matcher.push("abc<"), "abc");
  EXPECT_EQ(matcher.push("/x"), "</x");
  EXPECT_EQ(matcher.push("ST"), "");
  EXPECT_EQ(matcher.push("STO"), "ST");
  EXPECT_FALSE(matcher.matched());
  EXPECT_EQ(matcher.push("P and more"), "");
  EXPECT_EQ(matcher.matched(), "STOP");
  EXPECT_EQ(matcher.push("never"), "");
  EXPECT_EQ(matcher.finish(), "");
}

TEST(StopMatcher, HeldTextComesAtTheEnd) {
  StopMatcher matcher({"STOP"});
  EXPECT_EQ(matcher.push("xSTO"), "x");
  EXPECT_EQ(matcher.finish(), "STO");
}

TEST(StopMatcher, WithoutStopsEverythingPasses) {
  StopMatcher matcher({});
  EXPECT_EQ(matcher.push("any"), "any");
  EXPECT_FALSE(matcher.matched());
}

TEST(StopMatcher, AnyCuttingGivesTheSameText) {
  constexpr unsigned kSeed = 20261123;
  SCOPED_TRACE("seed " + std::to_string(kSeed));
  std::mt19937 random(kSeed);
  const auto below = [&](std::size_t n) { return static_cast<std::size_t>(random() % n); };
  const auto word = [&](std::size_t length) {
    std::string out;
    for (std::size_t i = 0; i < length; ++i)
      out += static_cast<char>('a' + below(3));
    return out;
  };
  int matches = 0;
  for (int round = 0; round < 20000; ++round) {
    std::vector<std::string> stops;
    for (std::size_t i = below(4); i > 0; --i)
      stops.push_back(word(1 + below(6)));
    const std::string text = word(below(40));
    const auto [expected, is_match] = by_definition(text, stops);
    StopMatcher matcher(stops);
    std::string got;
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t length = std::min(text.size() - at, 1 + below(5));
      got += matcher.push(text.substr(at, length));
      at += length;
    }
    got += matcher.finish();
    ASSERT_EQ(got, expected) << text;
    ASSERT_EQ(matcher.matched().has_value(), is_match) << text;
    matches += is_match ? 1 : 0;
  }
  EXPECT_GT(matches, 1000);
  EXPECT_LT(matches, 19000);
}

}  // namespace
}  // namespace thaw::coalescer
