#include "cli/explain.h"

#include <gtest/gtest.h>

namespace thaw::cli {
namespace {

constexpr const char* kAnswer = R"({"windows": [
  {"window": 7, "requests": [
    {"request": "cmpl-1", "prompt_tokens": 120, "shared_with": [{"request": "cmpl-2", "tokens": 100}],
     "parted": {"other": "cmpl-2", "position": 100, "text_before": "the end", "text_here": "a\nb",
                "text_other": "c", "other_root": false, "identical_tokens_after": 0, "advice": "Move it."}},
    {"request": "cmpl-2", "prompt_tokens": 110, "shared_with": [], "parted": null}]}]})";

TEST(Explain, PrintsWhatWasSharedAndWhereItParted) {
  const auto text = format_explanations(kAnswer, "");
  ASSERT_TRUE(text) << text.error().message;
  EXPECT_NE(text->find("window 7"), std::string::npos);
  EXPECT_NE(text->find("cmpl-1: 120 prompt tokens, in common: 100 with cmpl-2\n"),
            std::string::npos);
  EXPECT_NE(text->find("at token 100"), std::string::npos);
  EXPECT_NE(text->find("\"a\\nb\""), std::string::npos);
  EXPECT_NE(text->find("advice: Move it."), std::string::npos);
  EXPECT_NE(text->find("cmpl-2: 110 prompt tokens, nothing in common"), std::string::npos);
}

TEST(Explain, PicksOneRequest) {
  const auto text = format_explanations(kAnswer, "cmpl-2");
  ASSERT_TRUE(text);
  EXPECT_EQ(text->find("cmpl-1:"), std::string::npos);
  EXPECT_FALSE(format_explanations(kAnswer, "cmpl-9"));
}

TEST(Explain, RefusesForeignAnswers) {
  EXPECT_FALSE(format_explanations("<html>", ""));
  EXPECT_FALSE(format_explanations("{\"windows\": 3}", ""));
  EXPECT_FALSE(format_explanations("{\"windows\": []}", ""));
}

}  // namespace
}  // namespace thaw::cli
