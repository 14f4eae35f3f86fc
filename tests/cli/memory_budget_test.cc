#include "cli/memory_budget.h"

#include <gtest/gtest.h>

namespace thaw::cli {
namespace {

TEST(MemoryBudget, AddsUpAndReads) {
  const MemoryBudget budget{{{"weights", 92ULL << 20}, {"KV cache", 1ULL << 30}}};
  EXPECT_EQ(budget.total_bytes(), (92ULL << 20) + (1ULL << 30));
  EXPECT_EQ(budget.to_string(), "weights 92 MiB + KV cache 1.0 GiB = 1.1 GiB");
}

TEST(MemoryBudget, RefusesWhatCannotFit) {
  const MemoryBudget budget{{{"KV cache", 8ULL << 30}}};
  EXPECT_TRUE(check_fits(budget, 8ULL << 30));
  const auto refused = check_fits(budget, (8ULL << 30) - 1);
  ASSERT_FALSE(refused);
  EXPECT_NE(refused.error().message.find("KV cache 8.0 GiB"), std::string::npos);
  EXPECT_NE(refused.error().message.find("--kv-bytes"), std::string::npos);
}

TEST(MemoryBudget, ReadsThisMachine) {
  const auto available = available_memory_bytes();
  ASSERT_TRUE(available);
  EXPECT_GT(*available, 1ULL << 20);
}

}  // namespace
}  // namespace thaw::cli
