// Every path through the engine gives the same tokens and the same logit bits: many prompts on tiny
// models of every family.

#include "tests/scheduler/exactness.h"

#include <algorithm>

#include "tests/scheduler/ascii_texts.h"

namespace thaw::scheduler {
namespace {

constexpr int kVocabAtLeast = 200;

/// Prompts of 1 .. `longest_rest` tokens, the first ones behind a shared trunk.
ExactnessSuite::Options tiny_options(const std::string& path, unsigned num_prompts,
                                     int longest_rest) {
  ExactnessSuite::Options options;
  options.model_path = path;
  options.max_tokens = 24;
  options.num_blocks = 1500;
  // Past the attention split of 256 keys, and ending inside a block.
  options.trunk_tokens = 267;
  const auto trunk = model::random_tokens(267, kVocabAtLeast, 1);
  for (unsigned i = 0; i < num_prompts; ++i) {
    std::vector<TokenId> prompt;
    if (i < options.num_branches) prompt = trunk;
    const auto rest =
        model::random_tokens(1 + static_cast<int>(i * 37) % longest_rest, kVocabAtLeast, 50 + i);
    prompt.insert(prompt.end(), rest.begin(), rest.end());
    options.prompts.push_back(std::move(prompt));
  }
  return options;
}

/// Words of some letters, each with a number behind it, for ever.
void constrain(ExactnessSuite::Options& options) {
  const model::ModelConfig config = model::model_source(options.model_path).config;
  options.grammar = regex_grammar("([a-m]{2,7}[0-9]{1,3}[ ,])*");
  options.grammars =
      std::make_shared<grammar::Service>(ascii_texts(config.vocab_size, ' ', config.eos_token_ids),
                                         config.vocab_size, config.eos_token_ids);
}

struct Case {
  const char* model;
  ops::KvDType kv_dtype;
  bool seeded;
  bool is_family = false;  ///< a directory, with a context of 512 tokens
  unsigned num_prompts = 40;
  bool look_ahead = false;
  bool constrained = false;  ///< every other answer has a grammar
};

std::string name_of(const Case& parameter) {
  std::string name = std::string(parameter.model) + (parameter.seeded ? "_seeded" : "_greedy") +
                     (parameter.look_ahead ? "_ahead" : "") +
                     (parameter.constrained ? "_constrained" : "");
  std::ranges::replace(name, '-', '_');
  return name;
}

class Exactness : public ::testing::TestWithParam<Case> {
 protected:
  static ExactnessSuite& suite() {
    // One reference for all paths of a case.
    static std::map<std::string, std::unique_ptr<ExactnessSuite>> suites;
    const Case& parameter = GetParam();
    auto& suite = suites[name_of(parameter)];
    if (!suite) {
      auto options =
          parameter.is_family
              ? tiny_options(model::family_path(parameter.model), 18, 200)
              : tiny_options(model::tiny_model_path(parameter.model), parameter.num_prompts, 290);
      options.kv_dtype = parameter.kv_dtype;
      options.look_ahead = parameter.look_ahead;
      if (parameter.constrained) constrain(options);
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
  if (GetParam().constrained) GTEST_SKIP() << "the rest of an answer is no text of its grammar";
  suite().fed_again();
}
TEST_P(Exactness, ScoredAgain) {
  suite().scored_again();
}
TEST_P(Exactness, RestoredElsewhere) {
  if (GetParam().constrained) GTEST_SKIP() << "the rest of an answer is no text of its grammar";
  suite().restored_elsewhere();
}
TEST_P(Exactness, RestoredAfterEviction) {
  suite().restored_after_eviction();
}
TEST_P(Exactness, OneAndTwoThreads) {
  suite().other_thread_counts();
}

std::string case_name(const ::testing::TestParamInfo<Case>& info) {
  return name_of(info.param);
}

INSTANTIATE_TEST_SUITE_P(Tiny, Exactness,
                         ::testing::Values(Case{"q4_1", ops::KvDType::kBF16, false},
                                           Case{"q4_1", ops::KvDType::kBF16, true},
                                           Case{"f32", ops::KvDType::kF32, true},
                                           Case{"mixed", ops::KvDType::kF16, true},
                                           Case{"mixed-k", ops::KvDType::kBF16, true},
                                           Case{"qwen2-q4_1", ops::KvDType::kBF16, true, false, 18},
                                           Case{"qwen3-q8_0", ops::KvDType::kBF16, true, false, 18},
                                           Case{"smollm3-mixed", ops::KvDType::kBF16, true, false,
                                                18}),
                         case_name);

// The windows of the last three begin inside the trunk, inside a split and inside a block.
INSTANTIATE_TEST_SUITE_P(Families, Exactness,
                         ::testing::Values(Case{"llama2", ops::KvDType::kBF16, true, true},
                                           Case{"llama3", ops::KvDType::kBF16, true, true},
                                           Case{"llama-linear", ops::KvDType::kBF16, true, true},
                                           Case{"llama-yarn", ops::KvDType::kF32, true, true},
                                           Case{"qwen2", ops::KvDType::kBF16, true, true},
                                           Case{"qwen3", ops::KvDType::kF16, true, true},
                                           Case{"mistral", ops::KvDType::kBF16, true, true},
                                           Case{"qwen2-window", ops::KvDType::kF16, true, true},
                                           Case{"smollm3", ops::KvDType::kBF16, true, true}),
                         case_name);

// Two steps in flight and tokens that the model draws, against the same references.
INSTANTIATE_TEST_SUITE_P(LookAhead, Exactness,
                         ::testing::Values(Case{"q4_1", ops::KvDType::kBF16, false, false, 18,
                                                true},
                                           Case{"q4_1", ops::KvDType::kBF16, true, false, 18, true},
                                           Case{"qwen3", ops::KvDType::kF16, true, true, 18, true}),
                         case_name);

#ifdef THAW_WITH_GRAMMAR
// Constrained answers among free ones.
INSTANTIATE_TEST_SUITE_P(
    Constrained, Exactness,
    ::testing::Values(Case{"q4_1", ops::KvDType::kBF16, false, false, 18, false, true},
                      Case{"q4_1", ops::KvDType::kBF16, true, false, 18, false, true},
                      Case{"q4_1", ops::KvDType::kBF16, true, false, 18, true, true}),
    case_name);
#endif

}  // namespace
}  // namespace thaw::scheduler
