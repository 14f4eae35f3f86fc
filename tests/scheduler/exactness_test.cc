// Every path through the engine gives the same tokens and the same logit bits: many prompts on tiny
// models.

#include "tests/scheduler/exactness.h"

#include <algorithm>

namespace thaw::scheduler {
namespace {

constexpr int kVocabAtLeast = 200;

ExactnessSuite::Options tiny_options(const std::string& model) {
  ExactnessSuite::Options options;
  options.model_path = model::tiny_model_path(model);
  options.max_tokens = 24;
  options.num_blocks = 1500;
  // Past the attention split of 256 keys, and ending inside a block.
  options.trunk_tokens = 267;
  const auto trunk = model::random_tokens(267, kVocabAtLeast, 1);
  for (unsigned i = 0; i < 40; ++i) {
    std::vector<TokenId> prompt;
    if (i < options.num_branches) prompt = trunk;
    const auto rest =
        model::random_tokens(1 + static_cast<int>(i * 37 % 290), kVocabAtLeast, 50 + i);
    prompt.insert(prompt.end(), rest.begin(), rest.end());
    options.prompts.push_back(std::move(prompt));
  }
  return options;
}

struct Case {
  const char* model;
  ops::KvDType kv_dtype;
  bool seeded;
};

class Exactness : public ::testing::TestWithParam<Case> {
 protected:
  static ExactnessSuite& suite() {
    // One reference for all paths of a case.
    static std::map<std::string, std::unique_ptr<ExactnessSuite>> suites;
    const Case& parameter = GetParam();
    auto& suite = suites[std::string(parameter.model) + (parameter.seeded ? "s" : "g")];
    if (!suite) {
      auto options = tiny_options(parameter.model);
      options.kv_dtype = parameter.kv_dtype;
      suite = std::make_unique<ExactnessSuite>(options, parameter.seeded);
    }
    return *suite;
  }
};

TEST_P(Exactness, AloneWarm) {
  suite().alone_warm();
}
TEST_P(Exactness, InABatchOfEight) {
  suite().batched();
}
TEST_P(Exactness, OtherChunks) {
  suite().other_chunks();
}
TEST_P(Exactness, Choices) {
  suite().choices();
}
TEST_P(Exactness, SharedTrunk) {
  suite().shared_trunk();
}
TEST_P(Exactness, AfterEviction) {
  suite().after_eviction();
}
TEST_P(Exactness, AfterPreemption) {
  suite().after_preemption();
}
TEST_P(Exactness, Resumed) {
  suite().resumed();
}
TEST_P(Exactness, FedAgain) {
  suite().fed_again();
}
TEST_P(Exactness, OneAndTwoThreads) {
  suite().other_thread_counts();
}

INSTANTIATE_TEST_SUITE_P(Tiny, Exactness,
                         ::testing::Values(Case{"q4_1", ops::KvDType::kBF16, false},
                                           Case{"q4_1", ops::KvDType::kBF16, true},
                                           Case{"f32", ops::KvDType::kF32, true},
                                           Case{"mixed", ops::KvDType::kF16, true},
                                           Case{"mixed-k", ops::KvDType::kBF16, true}),
                         [](const auto& info) {
                           std::string name = info.param.model;
                           std::ranges::replace(name, '-', '_');
                           return name + (info.param.seeded ? "_seeded" : "_greedy");
                         });

}  // namespace
}  // namespace thaw::scheduler
