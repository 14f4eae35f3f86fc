#include "coalescer/core/plan.h"

#include <algorithm>
#include <random>

#include <gtest/gtest.h>

#include "coalescer/core/token_trie.h"
#include "tests/coalescer/requests.h"

namespace thaw::coalescer {
namespace {

std::vector<TokenId> range(TokenId first, int count) {
  std::vector<TokenId> tokens(static_cast<std::size_t>(count));
  for (int i = 0; i < count; ++i)
    tokens[static_cast<std::size_t>(i)] = first + i;
  return tokens;
}

std::vector<TokenId> joined(std::vector<TokenId> a, const std::vector<TokenId>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

TEST(CommonPrefix, AgreesWithALoop) {
  std::mt19937 random(1);
  for (int round = 0; round < 500; ++round) {
    std::vector<TokenId> a = range(0, static_cast<int>(random() % 300));
    std::vector<TokenId> b = range(0, static_cast<int>(random() % 300));
    if (!b.empty() && random() % 2 == 0) b[random() % b.size()] = -1;
    std::size_t expected = 0;
    while (expected < std::min(a.size(), b.size()) && a[expected] == b[expected])
      ++expected;
    EXPECT_EQ(common_prefix(a, b), expected);
  }
}

TEST(Plan, OneFamilyIsOneTrunk) {
  std::vector<GenerateRequest> requests;
  for (int i = 0; i < 4; ++i) {
    requests.push_back(
        request(static_cast<RequestId>(i + 1), joined(range(0, 2000), range(5000 + 100 * i, 20))));
  }
  const ForkPlan plan = make_plan(std::move(requests));
  ASSERT_EQ(plan.trunks.size(), 1U);
  EXPECT_EQ(plan.trunks[0].num_tokens, 2000U);
  EXPECT_EQ(plan.trunks[0].num_requests, 4U);
  EXPECT_EQ(plan.trunks[0].parent, -1);
  for (std::size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(plan.requests[i].trunk, 0);
    EXPECT_EQ(plan.requests[i].request.id, i + 1);
  }
}

TEST(Plan, AStrangerCostsOnlyItself) {
  std::vector<GenerateRequest> requests;
  requests.push_back(request(1, joined(range(0, 500), {7001})));
  requests.push_back(request(2, range(9000, 300)));
  requests.push_back(request(3, joined(range(0, 500), {7002})));
  const ForkPlan plan = make_plan(std::move(requests));
  ASSERT_EQ(plan.trunks.size(), 1U);
  EXPECT_EQ(plan.trunks[0].num_tokens, 500U);
  EXPECT_EQ(plan.requests[0].trunk, 0);
  EXPECT_EQ(plan.requests[1].trunk, -1);
  EXPECT_EQ(plan.requests[2].trunk, 0);
}

TEST(Plan, SaltsNeverShare) {
  std::vector<GenerateRequest> requests;
  requests.push_back(request(1, range(0, 100), "a"));
  requests.push_back(request(2, range(0, 100), "b"));
  requests.push_back(request(3, range(0, 100), "a"));
  const ForkPlan plan = make_plan(std::move(requests));
  ASSERT_EQ(plan.trunks.size(), 1U);
  EXPECT_EQ(plan.trunks[0].num_requests, 2U);
  EXPECT_EQ(plan.requests[1].trunk, -1);
}

TEST(Plan, TrunksNest) {
  std::vector<GenerateRequest> requests;
  const auto outer = range(0, 1000);
  const auto inner = joined(outer, range(3000, 200));
  requests.push_back(request(1, joined(inner, {1})));
  requests.push_back(request(2, joined(inner, {2})));
  requests.push_back(request(3, joined(outer, {3})));
  requests.push_back(request(4, outer));  // ends where the others go on
  const ForkPlan plan = make_plan(std::move(requests));
  ASSERT_EQ(plan.trunks.size(), 2U);
  EXPECT_EQ(plan.trunks[0].num_tokens, 1000U);
  EXPECT_EQ(plan.trunks[0].num_requests, 4U);
  EXPECT_EQ(plan.trunks[1].num_tokens, 1200U);
  EXPECT_EQ(plan.trunks[1].num_requests, 2U);
  EXPECT_EQ(plan.trunks[1].parent, 0);
  EXPECT_EQ(plan.requests[0].trunk, 1);
  EXPECT_EQ(plan.requests[1].trunk, 1);
  EXPECT_EQ(plan.requests[2].trunk, 0);
  EXPECT_EQ(plan.requests[3].trunk, 0);
}

// Against the definition: a request's trunk is its longest prefix that another request of its key
// has.
TEST(Plan, AgreesWithPairwiseComparison) {
  std::mt19937 random(7);
  for (int round = 0; round < 300; ++round) {
    std::vector<GenerateRequest> requests;
    const int count = 1 + static_cast<int>(random() % 12);
    for (int i = 0; i < count; ++i) {
      std::vector<TokenId> prompt(1 + random() % 12);
      for (TokenId& token : prompt)
        token = static_cast<TokenId>(random() % 2);
      requests.push_back(
          request(static_cast<RequestId>(i + 1), prompt, random() % 3 == 0 ? "x" : ""));
    }
    const std::vector<GenerateRequest> copy = requests;
    const ForkPlan plan = make_plan(std::move(requests));
    for (std::size_t i = 0; i < copy.size(); ++i) {
      std::size_t longest = 0;
      for (std::size_t j = 0; j < copy.size(); ++j) {
        if (i == j || copy[i].cache_salt != copy[j].cache_salt) continue;
        longest = std::max(longest, common_prefix(copy[i].prompt, copy[j].prompt));
      }
      const std::int32_t trunk = plan.requests[i].trunk;
      const std::size_t planned =
          trunk < 0 ? 0 : plan.trunks[static_cast<std::size_t>(trunk)].num_tokens;
      ASSERT_EQ(planned, longest) << "round " << round << " request " << i;
      if (trunk >= 0 && plan.trunks[static_cast<std::size_t>(trunk)].parent >= 0) {
        EXPECT_LT(plan.trunks[static_cast<std::size_t>(trunk)].parent, trunk);
      }
    }
  }
}

}  // namespace
}  // namespace thaw::coalescer
