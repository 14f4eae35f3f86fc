#include "kvsnap/rollout.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "kvsnap/rollout_pivots.h"
#include "tests/checkpoint/scratch_folder.h"

namespace thaw::kvsnap {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

Rollout sampled(const std::string& label, const std::vector<TokenId>& tokens, double logprob,
                std::vector<TokenId> prompt = {1, 2}) {
  Rollout rollout;
  rollout.label = label;
  rollout.model_id = "org/tiny";
  rollout.prompt_token_ids = std::move(prompt);
  for (const TokenId token : tokens)
    rollout.tokens.push_back({{token, "t" + std::to_string(token), logprob}, {}});
  return rollout;
}

TEST(Rollout, IsReadAsItIsWritten) {
  Rollout rollout = sampled("a", {5, 6}, -0.5);
  rollout.rollout_id = "id";
  rollout.parent_id = "parent";
  rollout.fork_index = 2;
  rollout.sampling_json = R"({"seed":18446744073709551615,"temperature":0.8})";
  rollout.text = "caf\xC3\xA9 \"x\"\n";
  rollout.created_at = 1781234567.5;
  rollout.tokens[0].topk = {{5, "t5", -0.5}, {9, std::nullopt, std::nullopt}};
  const auto text = rollout.to_json();
  ASSERT_TRUE(text);
  const auto again = Rollout::parse(*text);
  ASSERT_TRUE(again) << again.error().message;
  EXPECT_EQ(*again->to_json(), *text);
  EXPECT_EQ(again->tokens[0].topk[1].token_id, 9);
  EXPECT_EQ(again->sampling_json, rollout.sampling_json);
  const auto scores = again->scores();
  ASSERT_TRUE(scores);
  EXPECT_DOUBLE_EQ(scores->seq_logprob, -1.0);
  EXPECT_DOUBLE_EQ(scores->mean_logprob, -0.5);
  EXPECT_DOUBLE_EQ(scores->perplexity, std::exp(0.5));
  rollout.label = "\xFF";
  EXPECT_EQ(rollout.to_json().error().code, Errc::kInvalidArgument);
}

TEST(Rollout, PythonsInfinitiesCountAsNotCaptured) {
  const auto rollout = Rollout::parse(
      R"({"version": 1, "model_id": "m", "text": "NaN -Infinity \" Infinity", "tokens": [
          {"token_id": 1, "logprob": -Infinity, "topk": [{"token_id": 2, "logprob": NaN}]},
          {"token_id": 3, "logprob": -0.25}]})");
  ASSERT_TRUE(rollout) << rollout.error().message;
  EXPECT_EQ(rollout->text, "NaN -Infinity \" Infinity");
  EXPECT_EQ(rollout->tokens[0].chosen.logprob, std::nullopt);
  EXPECT_EQ(rollout->scores()->num_scored, 1U);
  EXPECT_EQ(rollout->fork_index, 0U);
}

TEST(Rollout, WhatLiesIsRefused) {
  const auto reason = [](const char* text) {
    const auto rollout = Rollout::parse(text);
    return rollout ? "" : rollout.error().message;
  };
  EXPECT_THAT(reason("["), HasSubstr("it is no JSON object"));
  EXPECT_THAT(reason(R"({"version": 2})"), HasSubstr("version 2; supported is 1"));
  EXPECT_THAT(reason(R"({"version": 1, "model_id": "m"})"), HasSubstr("tokens is no list"));
  EXPECT_THAT(reason(R"({"version": 1, "model_id": "m", "tokens": [1]})"),
              HasSubstr("token 0: it is no JSON object"));
  EXPECT_THAT(reason(R"({"version": 1, "model_id": "m", "tokens": [{"token_id": -1}]})"),
              HasSubstr("token_id is -1"));
  EXPECT_THAT(
      reason(R"({"version": 1, "model_id": "m", "tokens": [{"token_id": 1, "topk": [{}]}]})"),
      HasSubstr("token 0: topk: token_id is missing"));
  EXPECT_THAT(reason(R"({"version": 1, "model_id": "m", "tokens": [], "sampling": 1})"),
              HasSubstr("sampling is no object"));
}

TEST(Rollout, IsFoundInItsDirectory) {
  const checkpoint::ScratchFolder folder;
  const Rollout rollout = sampled("a", {5}, -0.5);
  folder.write("a/rollout.json", *rollout.to_json());
  FileIo& io = system_io(IoMode::kNoLinks);
  EXPECT_TRUE(read_rollout(io, folder / "a"));
  EXPECT_TRUE(read_rollout(io, folder / "a/rollout.json"));
  EXPECT_THAT(read_rollout(io, folder / "b").error().message, HasSubstr("is no rollout"));
  std::filesystem::create_symlink(folder / "a/rollout.json", folder / "rollout.json");
  EXPECT_THAT(read_rollout(io, folder.path()).error().message, HasSubstr("is a symbolic link"));
}

TEST(Pivots, AreTheNodesOfATree) {
  const std::vector<Rollout> rollouts{sampled("a", {1, 2, 3, 4}, -0.5),
                                      sampled("b", {1, 2, 7, 4}, -0.1), sampled("c", {1, 9}, -3),
                                      sampled("d", {1, 2, 7}, -1), sampled("e", {1, 2, 7}, -2)};
  EXPECT_EQ(common_tokens(rollouts[0], rollouts[1]), 2U);
  EXPECT_EQ(common_tokens(rollouts[1], rollouts[3]), 3U);
  EXPECT_THAT(rank_rollouts(rollouts), ElementsAre(1, 0, 3, 2, 4));
  const auto pivots = find_pivots(rollouts);
  ASSERT_EQ(pivots.size(), 3U);
  EXPECT_EQ(pivots[0].position, 1U);
  ASSERT_EQ(pivots[0].options.size(), 2U);
  EXPECT_EQ(pivots[0].options[0].token->token_id, 2);
  EXPECT_THAT(pivots[0].options[0].members, ElementsAre(1, 0, 3, 4));
  EXPECT_EQ(pivots[0].options[0].next, 1U);
  EXPECT_EQ(pivots[0].options[1].token->token_id, 9);
  EXPECT_EQ(pivots[0].options[1].next, std::nullopt);
  EXPECT_EQ(pivots[1].position, 2U);
  EXPECT_EQ(pivots[1].options[0].token->token_id, 7);
  EXPECT_EQ(pivots[1].options[0].next, 2U);
  EXPECT_EQ(pivots[2].position, 3U);
  EXPECT_EQ(pivots[2].options[0].token->token_id, 4);
  EXPECT_FALSE(pivots[2].options[1].token) << "they end there";
  EXPECT_THAT(pivots[2].options[1].members, ElementsAre(3, 4));
}

TEST(Pivots, ThereAreNoneAmongEquals) {
  EXPECT_TRUE(find_pivots({}).empty());
  const std::vector<Rollout> same{sampled("a", {1, 2}, -1), sampled("b", {1, 2}, -1)};
  EXPECT_TRUE(find_pivots(same).empty());
  const std::vector<Rollout> empty{sampled("a", {}, 0), sampled("b", {}, 0)};
  EXPECT_TRUE(find_pivots(empty).empty());
  EXPECT_EQ(rank_rollouts(empty).size(), 2U);
}

TEST(Pivots, AreOfOnePromptOfOneModel) {
  std::vector<Rollout> rollouts{sampled("a", {1}, -1), sampled("b", {2}, -1, {1, 3}),
                                sampled("c", {3}, -1), sampled("d", {4}, -1)};
  rollouts[3].model_id = "org/other";
  const auto groups = group_siblings(rollouts);
  ASSERT_EQ(groups.size(), 3U);
  EXPECT_THAT(groups[0].members, ElementsAre(0, 2));
  EXPECT_THAT(groups[1].members, ElementsAre(1));
  EXPECT_THAT(groups[2].members, ElementsAre(3));
}

}  // namespace
}  // namespace thaw::kvsnap
