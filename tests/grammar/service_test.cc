#include "engine/grammar/service.h"

#include <optional>
#include <string>
#include <vector>

#include "tests/grammar/small_vocabulary.h"

namespace thaw::grammar {
namespace {

class ServiceTest : public ::testing::Test {
 protected:
  Result<Preparation::Matchers> ask(Service& service, Order order) {
    auto preparation = service.prepare(std::move(order));
    if (!preparation) return preparation.error();
    for (int i = 0; i < 1000; ++i) {
      if (auto taken = service.take(**preparation)) return *std::move(taken);
      service.wait(std::chrono::milliseconds(100));
    }
    return make_error(Errc::kDeadlineExceeded, "the service does not answer");
  }

  const std::string number_ = schema(R"({"type":"integer"})");
  const std::string text_ = schema(R"({"type":"string"})");
};

TEST_F(ServiceTest, ADocumentIsCompiledOnce) {
  Service service(std::make_shared<const TokenTexts>(small_texts()), kVocabSize, {kEnd});
  for (int i = 0; i < 3; ++i) {
    const auto matchers = ask(service, {number_, {}, {{}, {}}});
    ASSERT_TRUE(matchers) << matchers.error().message;
    EXPECT_EQ(matchers->size(), 2U);
  }
  ASSERT_TRUE(ask(service, {text_, {}, {{}}}));
  const ServiceStats stats = service.stats();
  EXPECT_EQ(stats.compiled, 2U);
  EXPECT_EQ(stats.cache_hits, 2U);
  EXPECT_GT(stats.compile_us, 0U);
}

TEST_F(ServiceTest, ARefusalIsRemembered) {
  Service service(std::make_shared<const TokenTexts>(small_texts()), kVocabSize, {kEnd});
  for (int i = 0; i < 3; ++i) {
    const auto matchers = ask(service, {"{}", {}, {{}}});
    ASSERT_FALSE(matchers);
    EXPECT_EQ(matchers.error().code, Errc::kInvalidArgument);
  }
  EXPECT_EQ(service.stats().compiled, 1U);
}

TEST_F(ServiceTest, TheCacheKeepsWhatWasUsedLast) {
  const auto small = compile(number_).value();
  ServiceOptions options;
  options.cache_bytes = 3 * (small->size_bytes() + number_.size());
  Service service(std::make_shared<const TokenTexts>(small_texts()), kVocabSize, {kEnd}, options);
  const auto numbered = [](int i) {
    return schema(R"({"type":"integer","title":")" + std::to_string(i) + "\"}");
  };
  for (int i = 0; i < 20; ++i) {
    ASSERT_TRUE(ask(service, {numbered(i), {}, {{}}}));
    ASSERT_TRUE(ask(service, {numbered(0), {}, {{}}}));
    EXPECT_LE(service.stats().cached_bytes, options.cache_bytes);
  }
  EXPECT_EQ(service.stats().compiled, 20U) << "what was used all the time went";
  ASSERT_TRUE(ask(service, {numbered(1), {}, {{}}}));
  EXPECT_EQ(service.stats().compiled, 21U) << "what was not used stayed";
}

TEST_F(ServiceTest, WhatWasGeneratedIsReplayed) {
  Service service(std::make_shared<const TokenTexts>(small_texts()), kVocabSize, {kEnd});
  const auto matchers = ask(service, {number_, {}, {{'1', '2'}, {}}});
  ASSERT_TRUE(matchers) << matchers.error().message;
  EXPECT_TRUE(may_end(*(*matchers)[0]));
  EXPECT_FALSE(may_end(*(*matchers)[1]));
  const auto impossible = ask(service, {number_, {}, {{'x'}}});
  ASSERT_FALSE(impossible);
  EXPECT_NE(impossible.error().message.find("token 120"), std::string::npos)
      << impossible.error().message;
}

TEST_F(ServiceTest, StopTokensAreTheOrders) {
  Service service(std::make_shared<const TokenTexts>(small_texts()), kVocabSize, {kEnd});
  const auto matchers = ask(service, {number_, {kTurn}, {{'1'}}});
  ASSERT_TRUE(matchers);
  EXPECT_TRUE(allows(mask_of(*(*matchers)[0]), kTurn));
  const auto without = ask(service, {number_, {}, {{'1'}}});
  ASSERT_TRUE(without);
  EXPECT_FALSE(allows(mask_of(*(*without)[0]), kTurn));
}

TEST_F(ServiceTest, TooManyOrdersAreRefused) {
  ServiceOptions options;
  options.max_waiting = 0;
  Service service(std::make_shared<const TokenTexts>(small_texts()), kVocabSize, {kEnd}, options);
  const auto refused = service.prepare({number_, {}, {{}}});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Errc::kResourceExhausted);
}

TEST_F(ServiceTest, AVocabularyThatCannotBeIsTheAnswer) {
  Service service(std::make_shared<const TokenTexts>(small_texts()), kVocabSize, {kVocabSize + 5});
  const auto refused = ask(service, {number_, {}, {{}}});
  ASSERT_FALSE(refused);
  EXPECT_NE(refused.error().message.find("stop token"), std::string::npos);
}

}  // namespace
}  // namespace thaw::grammar
