#include "coalescer/core/history.h"

#include <thread>

#include <gtest/gtest.h>

#include "tests/coalescer/requests.h"

namespace thaw::coalescer {
namespace {

// Token t is the word "w<t>"; tokens below 256 are characters.
std::string words(const std::string& /*model*/, std::span<const TokenId> tokens) {
  std::string text;
  for (const TokenId token : tokens) {
    if (token < 256) {
      text += static_cast<char>(token);
    } else {
      text += " w" + std::to_string(token);
    }
  }
  return text;
}

std::vector<TokenId> characters(const std::string& text) {
  return {text.begin(), text.end()};
}

void append(std::vector<TokenId>& tokens, const std::vector<TokenId>& more) {
  tokens.insert(tokens.end(), more.begin(), more.end());
}

std::vector<TokenId> document(int count) {
  std::vector<TokenId> tokens;
  for (int i = 0; i < count; ++i)
    tokens.push_back(1000 + i);
  return tokens;
}

TEST(History, NamesWhatWasSharedAndTheFirstDifference) {
  ForkHistory history(16, 1 << 20, words);
  std::vector<TokenId> a = document(100);
  append(a, characters("security"));
  std::vector<TokenId> b = document(100);
  append(b, characters("style"));
  const GenerateRequest window[] = {request(1, a), request(2, b)};
  history.record(window);
  const auto explanation = history.explain(2);
  ASSERT_TRUE(explanation);
  ASSERT_EQ(explanation->shared_with.size(), 1U);
  EXPECT_EQ(explanation->shared_with[0].request, 1U);
  EXPECT_EQ(explanation->shared_with[0].tokens, 101U);  // both go on with "s"
  ASSERT_TRUE(explanation->parted);
  EXPECT_EQ(explanation->parted->position, 101U);
  EXPECT_EQ(explanation->parted->text_here, "tyle");
  EXPECT_EQ(explanation->parted->text_other, "ecurity");
  EXPECT_EQ(explanation->parted->advice, "");
}

TEST(History, AdvisesToMoveASystemPromptBehindTheDocument) {
  ForkHistory history(16, 1 << 20, words);
  std::vector<TokenId> a = characters("You are the security reviewer.");
  append(a, document(300));
  std::vector<TokenId> b = characters("You are the style reviewer.");
  append(b, document(300));
  const GenerateRequest window[] = {request(1, a), request(2, b)};
  history.record(window);
  const auto explanation = history.explain(1);
  ASSERT_TRUE(explanation && explanation->parted);
  EXPECT_EQ(explanation->parted->position, 13U);
  EXPECT_GE(explanation->parted->identical_tokens_after, 300U);
  EXPECT_NE(explanation->parted->advice.find("Put the shared text first"), std::string::npos);
}

TEST(History, RecognisesDates) {
  ForkHistory history(16, 1 << 20, words);
  std::vector<TokenId> a = characters("Now: 2026-11-23 10:00");
  append(a, document(100));
  std::vector<TokenId> b = characters("Now: 2027-01-02 11:30");
  append(b, document(100));
  const GenerateRequest window[] = {request(1, a), request(2, b)};
  history.record(window);
  const auto explanation = history.explain(2);
  ASSERT_TRUE(explanation && explanation->parted);
  EXPECT_EQ(explanation->parted->position, 8U);
  EXPECT_NE(explanation->parted->advice.find("a date or time"), std::string::npos)
      << explanation->parted->advice;
}

TEST(History, ExplainsSaltsAndHidesOtherTenants) {
  ForkHistory history(16, 1 << 20, words);
  GenerateRequest first = request(1, document(50));
  GenerateRequest salted = request(2, document(50));
  salted.cache_salt = "x";
  GenerateRequest foreign = request(3, document(50));
  foreign.tenant = "someone else";
  const GenerateRequest window[] = {first, salted, foreign};
  history.record(window);
  const auto explanation = history.explain(2);
  ASSERT_TRUE(explanation && explanation->parted);
  EXPECT_TRUE(explanation->shared_with.empty());
  EXPECT_TRUE(explanation->parted->other_root);
  EXPECT_EQ(explanation->parted->other, 1U);
  EXPECT_NE(explanation->parted->advice.find("cache_salt"), std::string::npos);
  const auto hidden = history.explain(3);
  ASSERT_TRUE(hidden);
  EXPECT_FALSE(hidden->parted);
  EXPECT_TRUE(hidden->shared_with.empty());
}

TEST(History, IsBoundedAndForgetsTheOldest) {
  ForkHistory history(4, 1000, words);
  for (RequestId id = 1; id <= 6; ++id) {
    const GenerateRequest window[] = {request(id, document(100))};
    EXPECT_EQ(history.record(window), id);
  }
  EXPECT_FALSE(history.explain(2));
  EXPECT_TRUE(history.explain(3));
  EXPECT_EQ(history.recent(10).size(), 4U);
  EXPECT_EQ(history.recent(2).front().window, 6U);
  const GenerateRequest huge[] = {request(7, document(2000))};
  history.record(huge);
  EXPECT_EQ(history.recent(10).size(), 1U);
}

TEST(History, LaterWindowsAreNoReason) {
  ForkHistory history(16, 1 << 20, words);
  const GenerateRequest first[] = {request(1, document(100))};
  const GenerateRequest second[] = {request(2, document(100))};
  history.record(first);
  history.record(second);
  EXPECT_TRUE(history.explain(1)->shared_with.empty());
  EXPECT_EQ(history.explain(2)->shared_with.size(), 1U);
}

TEST(History, TwoThreads) {
  ForkHistory history(64, 1 << 20, words);
  std::thread writer([&] {
    for (RequestId id = 1; id <= 200; ++id) {
      const GenerateRequest window[] = {request(id, document(20))};
      history.record(window);
    }
  });
  std::size_t seen = 0;
  for (int i = 0; i < 200; ++i)
    seen = std::max(seen, history.recent(100).size());
  writer.join();
  EXPECT_LE(seen, 64U);
  EXPECT_EQ(history.recent(100).size(), 64U);
}

}  // namespace
}  // namespace thaw::coalescer
