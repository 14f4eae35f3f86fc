// Every path through the engine on a GPU against each request alone, tokens and logit bits: the
// default model on real text and a random 8B shape, 16 prompts of 64 tokens each.

#include <filesystem>
#include <map>
#include <memory>
#include <string>

#include "kvsnap/copy_pipeline_cuda.h"
#include "tests/cuda/gpu_test.h"
#include "tests/model/cuda_harness.h"
#include "tests/scheduler/ascii_texts.h"
#include "tests/scheduler/real_prompts.h"

namespace thaw::scheduler {
namespace {

using model::CudaTestWeights;

struct Case {
  const char* name;
  bool is_8b = false;
  bool seeded = false;
  bool look_ahead = false;  ///< tokens drawn on the device, two steps in flight
  bool constrained = false;  ///< every other answer has a grammar
};

/// Variant 1 is a worker's; 2 launches every kernel by itself, and has another workspace.
class CudaSuiteModel final : public SuiteModel {
 public:
  CudaSuiteModel(const CudaTestWeights& weights, int num_blocks, int variant)
      : harness_(weights, options(variant), num_blocks),
        pipeline_(kvsnap::make_cuda_copy_pipeline(harness_.model().stream(),
                                                  {.num_threads = 4, .chunks = {}})
                      .value()) {}
  model::Model& model() override { return harness_.model(); }
  kvsnap::CopyPipeline& pipeline() override { return *pipeline_; }

 private:
  static model::CudaModelOptions options(int variant) {
    model::CudaModelOptions options;
    options.max_positions = 4096;
    options.max_rows = 1024;
    options.max_sequences = variant == 1 ? 64 : 24;
    options.use_graphs = variant == 1;
    return options;
  }

  model::CudaHarness harness_;
  std::unique_ptr<kvsnap::CopyPipeline> pipeline_;
};

/// The same shape as the default model's prompts, of ids below the vocabulary.
std::vector<std::vector<TokenId>> random_prompts(int vocab_size) {
  std::vector<std::vector<TokenId>> prompts;
  const auto trunk = model::random_tokens(261, vocab_size, 1);
  for (int i = 0; i < 16; ++i) {
    std::vector<TokenId> prompt;
    if (i < 8) prompt = trunk;
    const auto rest = model::random_tokens(9 + 5 * i, vocab_size, 50 + static_cast<unsigned>(i));
    prompt.insert(prompt.end(), rest.begin(), rest.end());
    prompts.push_back(std::move(prompt));
  }
  return prompts;
}

class CudaExactness : public cuda::GpuTest, public testing::WithParamInterface<Case> {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    ASSERT_TRUE(GetParam().is_8b || std::filesystem::exists(model::default_model()))
        << model::default_model() << " is missing: `make model` fetches it";
  }
  /// One set of weights of a model, and one reference for all tests of a case. They stay: gtest
  /// runs the cases of one test, and then those of the next.
  static ExactnessSuite& suite() {
    static std::map<bool, std::unique_ptr<CudaTestWeights>> weights;
    static std::map<std::string, std::unique_ptr<ExactnessSuite>> suites;
    const Case& wanted = GetParam();
    auto& suite = suites[wanted.name];
    if (suite) return *suite;
    auto& held = weights[wanted.is_8b];
    if (!held) {
      held = wanted.is_8b
                 ? std::make_unique<CudaTestWeights>(model::llama_8b_config(), 7, 0.02F)
                 : std::make_unique<CudaTestWeights>(model::gguf_source(model::default_model()));
    }
    auto options =
        wanted.constrained && !wanted.is_8b ? constrained_model_options() : default_model_options();
    if (wanted.is_8b) options.prompts = random_prompts(held->config().vocab_size);
    if (wanted.is_8b && wanted.constrained) {
      const model::ModelConfig& config = held->config();
      options.grammar = regex_grammar("([a-m]{2,7}[0-9]{1,3}[ ,])*");
      options.grammars = std::make_shared<grammar::Service>(
          ascii_texts(config.vocab_size, ' ', config.eos_token_ids), config.vocab_size,
          config.eos_token_ids);
    }
    options.look_ahead = wanted.look_ahead;
    options.make_model = [&held, blocks = options.num_blocks](int variant) {
      return std::make_unique<CudaSuiteModel>(*held, blocks, variant);
    };
    suite = std::make_unique<ExactnessSuite>(options, wanted.seeded);
    return *suite;
  }
};

TEST_P(CudaExactness, AloneWarm) {
  suite().alone_warm();
}
TEST_P(CudaExactness, InABatchOfEight) {
  suite().batched();
}
TEST_P(CudaExactness, OtherChunks) {
  suite().other_chunks();
}
TEST_P(CudaExactness, Choices) {
  suite().choices();
}
TEST_P(CudaExactness, SharedTrunk) {
  suite().shared_trunk();
}
TEST_P(CudaExactness, AfterEviction) {
  suite().after_eviction();
}
TEST_P(CudaExactness, AfterPreemption) {
  suite().after_preemption();
}
TEST_P(CudaExactness, Resumed) {
  suite().resumed();
}
TEST_P(CudaExactness, FedAgain) {
  if (GetParam().constrained) GTEST_SKIP() << "the rest of an answer is no text of its grammar";
  suite().fed_again();
}
TEST_P(CudaExactness, ScoredAgain) {
  suite().scored_again();
}
TEST_P(CudaExactness, RestoredElsewhere) {
  if (GetParam().constrained) GTEST_SKIP() << "the rest of an answer is no text of its grammar";
  suite().restored_elsewhere();
}
TEST_P(CudaExactness, RestoredAfterEviction) {
  suite().restored_after_eviction();
}
TEST_P(CudaExactness, WithAndWithoutGraphs) {
  suite().other_thread_counts();
}

INSTANTIATE_TEST_SUITE_P(Models, CudaExactness,
                         testing::Values(Case{"DefaultModelGreedy"},
                                         Case{"DefaultModelSeeded", false, true},
                                         Case{"DefaultModelGreedyDrawn", false, false, true},
                                         Case{"DefaultModelSeededDrawn", false, true, true},
                                         Case{"Llama8bGreedy", true},
                                         Case{"Llama8bSeeded", true, true}),
                         [](const auto& info) { return std::string(info.param.name); });

#ifdef THAW_WITH_GRAMMAR
INSTANTIATE_TEST_SUITE_P(Constrained, CudaExactness,
                         testing::Values(Case{"Seeded", false, true, false, true},
                                         Case{"GreedyDrawn", false, false, true, true},
                                         Case{"SeededDrawn", false, true, true, true},
                                         Case{"Llama8bDrawn", true, true, true, true}),
                         [](const auto& info) { return std::string(info.param.name); });
#endif

}  // namespace
}  // namespace thaw::scheduler
