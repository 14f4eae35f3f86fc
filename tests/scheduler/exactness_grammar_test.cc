// The default model, every other answer JSON of a schema: the paths that a grammar goes along.

#include <filesystem>

#include "tests/scheduler/real_prompts.h"

namespace thaw::scheduler {
namespace {

class GrammarExactness : public ::testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    ASSERT_TRUE(std::filesystem::exists(model::default_model()))
        << model::default_model() << " is missing: `make model` fetches it";
  }
  /// Seeded, one reference for all. With the parameter two steps are in flight, and masks are given
  /// to their draws.
  static ExactnessSuite& suite() {
    static std::unique_ptr<ExactnessSuite> suite;
    if (!suite) {
      auto options = constrained_model_options();
      options.max_tokens = 40;
      suite = std::make_unique<ExactnessSuite>(options, true);
    }
    suite->set_look_ahead(GetParam());
    return *suite;
  }
};

TEST_P(GrammarExactness, InABatchOfEightAndThenAlone) {
  suite().batched_then_alone_warm();
}
TEST_P(GrammarExactness, Choices) {
  suite().choices();
}
TEST_P(GrammarExactness, AfterPreemption) {
  suite().after_preemption();
}
TEST_P(GrammarExactness, Resumed) {
  suite().resumed();
}
TEST_P(GrammarExactness, RestoredAfterEviction) {
  suite().restored_after_eviction();
}

INSTANTIATE_TEST_SUITE_P(DefaultModel, GrammarExactness, ::testing::Bool(), [](const auto& info) {
  return info.param ? "TwoInFlight" : "OneInFlight";
});

}  // namespace
}  // namespace thaw::scheduler
