#include "forkpool/recent_trunks.h"

#include <gtest/gtest.h>

#include "tests/forkpool/fake_tokens.h"

namespace thaw::forkpool {
namespace {

std::vector<TokenId> joined(std::vector<TokenId> a, const std::vector<TokenId>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

class RecentTrunksTest : public testing::Test {
 protected:
  void note(std::vector<TokenId> prompt, const std::string& tenant = "") {
    GenerateRequest request;
    request.tenant = tenant;
    request.prompt = std::move(prompt);
    recent.note(request, 64);
  }
  RecentTrunks::Entry& front() { return recent.entries().front(); }
  RecentTrunks recent;
};

TEST_F(RecentTrunksTest, KeepsWholeBlocksOfLongPrompts) {
  note(counted(63));
  EXPECT_TRUE(recent.entries().empty());
  note(counted(100));
  EXPECT_EQ(front().token_ids, counted(96));
  EXPECT_EQ(front().uses, 1U);
}

TEST_F(RecentTrunksTest, AChatReplacesItsFormerTurn) {
  note(counted(96));
  front().written_tokens = 96;
  note(counted(160));
  note(counted(240));
  ASSERT_EQ(recent.entries().size(), 1U);
  EXPECT_EQ(front().token_ids.size(), 240U);
  EXPECT_EQ(front().uses, 3U);
  EXPECT_EQ(front().written_tokens, 96U);
}

TEST_F(RecentTrunksTest, BranchesLeaveWhatTheyHaveInCommon) {
  for (TokenId branch = 1; branch <= 4; ++branch)
    note(joined(counted(128), counted(32, branch * 1000)));
  ASSERT_EQ(recent.entries().size(), 1U);
  EXPECT_EQ(front().token_ids, counted(128));
  EXPECT_EQ(front().uses, 4U);
}

TEST_F(RecentTrunksTest, ALongBranchCountsForItself) {
  note(joined(counted(128), counted(32, 1000)));
  note(joined(counted(128), counted(96, 2000)));
  ASSERT_EQ(recent.entries().size(), 2U);
  EXPECT_EQ(front().token_ids.size(), 224U);
  EXPECT_EQ(recent.entries().back().token_ids, counted(128));
}

TEST_F(RecentTrunksTest, OwnersAreApart) {
  note(counted(96), "mine");
  note(counted(96), "theirs");
  note(counted(96), "mine");
  ASSERT_EQ(recent.entries().size(), 2U);
  EXPECT_EQ(front().owner.tenant, "mine");
  EXPECT_EQ(front().uses, 2U);
}

TEST_F(RecentTrunksTest, ForgetsTheOldest) {
  for (TokenId i = 0; i < 300; ++i)
    note(counted(64, i * 1000));
  EXPECT_EQ(recent.entries().size(), 256U);
  EXPECT_EQ(front().token_ids, counted(64, 299'000));
}

}  // namespace
}  // namespace thaw::forkpool
