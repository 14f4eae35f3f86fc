// The default model: 16 prompts of real text, 64 tokens each, over every path. Needs `make model`.

#include <filesystem>
#include <fstream>

#include "tests/model/logits_reference.h"
#include "tests/scheduler/exactness.h"

namespace thaw::scheduler {
namespace {

using model::default_model;

// 512 tokens of real text, from the fixture that holds their reference logits.
std::vector<TokenId> real_text() {
  std::ifstream file(std::string(THAW_SOURCE_DIR) + "/tests/data/logits_reference.bin",
                     std::ios::binary);
  std::vector<TokenId> tokens(512);
  file.seekg(16);
  file.read(reinterpret_cast<char*>(tokens.data()),
            static_cast<std::streamsize>(tokens.size() * sizeof(TokenId)));
  EXPECT_TRUE(file) << "tests/data/logits_reference.bin is missing: `make fixtures` writes it";
  return tokens;
}

ExactnessSuite::Options real_options() {
  ExactnessSuite::Options options;
  options.model_path = default_model();
  options.max_tokens = 64;
  options.num_blocks = 400;
  options.chunks = {19};
  options.trunk_tokens = 261;
  const auto text = real_text();
  for (int i = 0; i < 16; ++i) {
    std::vector<TokenId> prompt;
    if (i < 8) prompt.assign(text.begin(), text.begin() + 261);
    const auto rest = text.begin() + 261 + 10 * i;
    prompt.insert(prompt.end(), rest, rest + 9 + 5 * i);
    options.prompts.push_back(std::move(prompt));
  }
  return options;
}

class RealExactness : public ::testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    ASSERT_TRUE(std::filesystem::exists(default_model()))
        << default_model() << " is missing: `make model` fetches it";
  }
  static ExactnessSuite& suite() {
    static std::map<bool, std::unique_ptr<ExactnessSuite>> suites;
    auto& suite = suites[GetParam()];
    if (!suite) suite = std::make_unique<ExactnessSuite>(real_options(), GetParam());
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
TEST_P(RealExactness, OneAndTwoThreads) {
  suite().other_thread_counts();
}

INSTANTIATE_TEST_SUITE_P(DefaultModel, RealExactness, ::testing::Bool(),
                         [](const auto& info) { return info.param ? "Seeded" : "Greedy"; });

}  // namespace
}  // namespace thaw::scheduler
