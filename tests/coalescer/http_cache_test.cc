// The KV that requests ask to keep, and when to come back who was refused.

#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "coalescer/http/cache_pins.h"
#include "tests/base/manual_clock.h"
#include "tests/coalescer/http_client.h"

namespace thaw::coalescer {
namespace {

using nlohmann::json;
using std::chrono::seconds;

class CachePinsTest : public ::testing::Test {
 protected:
  static constexpr std::uint64_t kBlockBytes = kBlockSize * FakeBackend::kFakeTokenBytes;

  void keep(const std::string& tokens, const std::string& key = "", int ttl = 60,
            const std::string& tenant = "") {
    pins_.keep({tenant, "", "m", ""}, key, byte_tokens(tokens), seconds(ttl));
  }
  std::vector<std::size_t> kept() const {
    std::vector<std::size_t> sizes;
    for (const auto& [pin, trunk] : backend_.kept())
      sizes.push_back(trunk.token_ids.size());
    std::ranges::sort(sizes);
    return sizes;
  }

  FakeBackend backend_;
  ManualClock clock_;
  CachePins pins_ = [this] {
    CachePins pins(8 * kBlockBytes, &backend_, &clock_);
    pins.set_post([](const std::function<void()>& task) { task(); });
    return pins;
  }();
};

TEST_F(CachePinsTest, WholeBlocksForATime) {
  keep(std::string(15, 'a'));
  EXPECT_TRUE(kept().empty());
  keep(std::string(40, 'a'));
  EXPECT_EQ(kept(), std::vector<std::size_t>{32});
  EXPECT_EQ(backend_.kept().begin()->second.ttl, seconds(60));
  EXPECT_EQ(pins_.bytes(), 2 * kBlockBytes);
  keep(std::string(40, 'a'), "", 90);  // again: longer
  EXPECT_EQ(pins_.num_pinned(), 1U);
  EXPECT_EQ(backend_.kept().begin()->second.ttl, seconds(90));
  clock_.advance(seconds(91));
  keep(std::string(16, 'b'));
  EXPECT_EQ(kept(), std::vector<std::size_t>{16});
  EXPECT_EQ(pins_.bytes(), kBlockBytes);
}

TEST_F(CachePinsTest, OwnersAndKeysAreApart) {
  keep(std::string(16, 'a'), "k", 60, "x");
  keep(std::string(16, 'a'), "k", 60, "y");
  keep(std::string(32, 'a'), "other", 60, "x");
  EXPECT_EQ(kept(), (std::vector<std::size_t>{16, 16, 32}));
  // What grows takes the place of what it began as.
  keep(std::string(16, 'a') + std::string(16, 'b'), "k", 60, "x");
  EXPECT_EQ(kept(), (std::vector<std::size_t>{16, 32, 32})) << pins_.bytes();
}

TEST_F(CachePinsTest, TheBudgetHolds) {
  keep(std::string(64, 'a'));
  keep(std::string(64, 'b'));
  keep(std::string(16, 'c'));
  EXPECT_EQ(kept(), (std::vector<std::size_t>{16, 64}));
  EXPECT_EQ(pins_.num_given_up(), 1U);
  keep(std::string(200, 'd'));  // too large alone: the others stay
  EXPECT_EQ(kept(), (std::vector<std::size_t>{16, 64}));
}

TEST_F(CachePinsTest, WhatCannotBeKeptIsForgotten) {
  backend_.set_trunk_error(make_error(Errc::kNotFound, "gone"));
  keep(std::string(32, 'a'));
  EXPECT_EQ(pins_.num_pinned(), 0U);
  backend_.set_trunk_error(make_error(Errc::kResourceExhausted, "full"));
  keep(std::string(32, 'a'));
  EXPECT_EQ(pins_.num_pinned(), 0U);
}

TEST(HttpCache, ABreakpointIsKeptAndAPrewarmGeneratesNothing) {
  FakeBackend backend;
  RunningServer server(&backend);
  const std::string text(60, 'h');
  const json message = {
      {"role", "user"},
      {"content",
       {{{"type", "text"}, {"text", text}, {"prompt_cache_breakpoint", {{"mode", "explicit"}}}},
        {{"type", "text"}, {"text", "and the question"}}}}};
  const json body = {{"messages", {message}},
                     {"prompt_cache_key", "k"},
                     {"prompt_cache_options", {{"prewarm", true}, {"ttl", "12h"}}}};
  const ClientReply reply = server.post(kChatPath, body.dump());
  ASSERT_EQ(reply.status, 200) << reply.body;
  const json answer = json::parse(reply.body);
  EXPECT_EQ(answer["choices"][0]["message"]["content"], "");
  EXPECT_EQ(answer["usage"]["completion_tokens"], 0);
  const auto& details = answer["usage"]["prompt_tokens_details"];
  EXPECT_EQ(details["cached_tokens"].get<int>() + details["cache_write_tokens"].get<int>(),
            answer["usage"]["prompt_tokens"]);
  const GenerateRequest request = backend.wait_for_request(1);
  EXPECT_EQ(request.sampling.max_tokens, 0U);
  const auto kept = backend.kept();
  ASSERT_EQ(kept.size(), 1U);
  // "user: " and the text are 66 bytes.
  EXPECT_EQ(kept.begin()->second.token_ids.size(), 64U);
  EXPECT_EQ(kept.begin()->second.ttl, seconds(12 * 3600));
  EXPECT_NE(server.get("/metrics").body.find("thaw_prompt_cache_pins 1"), std::string::npos);
}

TEST(HttpCache, WithoutAWishNothingIsKept) {
  FakeBackend backend;
  RunningServer server(&backend);
  ASSERT_EQ(server.post(kChatPath, chat_body(R"("prompt_cache_key": "k", "max_tokens": 2)")).status,
            200);
  EXPECT_TRUE(backend.kept().empty());
}

}  // namespace
}  // namespace thaw::coalescer
