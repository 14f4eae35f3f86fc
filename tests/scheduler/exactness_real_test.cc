// The default model: 16 prompts of real text, 64 tokens each, over every path. Needs `make model`.

#include <filesystem>

#include "tests/model/logits_reference.h"
#include "tests/scheduler/exactness.h"
#include "tests/scheduler/real_prompts.h"

namespace thaw::scheduler {
namespace {

using model::default_model;

class RealExactness : public ::testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    ASSERT_TRUE(std::filesystem::exists(default_model()))
        << default_model() << " is missing: `make model` fetches it";
  }
  static ExactnessSuite& suite() {
    static std::map<bool, std::unique_ptr<ExactnessSuite>> suites;
    auto& suite = suites[GetParam()];
    if (!suite) suite = std::make_unique<ExactnessSuite>(default_model_options(), GetParam());
    return *suite;
  }
};

TEST_P(RealExactness, AloneWarm) {
  suite().alone_warm();
}
TEST_P(RealExactness, InABatchOfEight) {
  suite().batched();
}
TEST_P(RealExactness, OtherChunks) {
  suite().other_chunks();
}
TEST_P(RealExactness, Choices) {
  suite().choices();
}
TEST_P(RealExactness, SharedTrunk) {
  suite().shared_trunk();
}
TEST_P(RealExactness, AfterEviction) {
  suite().after_eviction();
}
TEST_P(RealExactness, AfterPreemption) {
  suite().after_preemption();
}
TEST_P(RealExactness, Resumed) {
  suite().resumed();
}
TEST_P(RealExactness, FedAgain) {
  suite().fed_again();
}
TEST_P(RealExactness, ScoredAgain) {
  suite().scored_again();
}
TEST_P(RealExactness, RestoredElsewhere) {
  suite().restored_elsewhere();
}
TEST_P(RealExactness, RestoredAfterEviction) {
  suite().restored_after_eviction();
}
TEST_P(RealExactness, OneAndTwoThreads) {
  suite().other_thread_counts();
}

INSTANTIATE_TEST_SUITE_P(DefaultModel, RealExactness, ::testing::Bool(),
                         [](const auto& info) { return info.param ? "Seeded" : "Greedy"; });

}  // namespace
}  // namespace thaw::scheduler
