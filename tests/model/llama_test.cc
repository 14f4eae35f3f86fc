// The Llama family on tiny random models: right against a naive double implementation, and the
// same bits however rows are grouped (docs/exactness.md).

#include <algorithm>
#include <cmath>

#include <gtest/gtest.h>

#include "tests/model/model_harness.h"
#include "tests/model/naive_llama.h"

namespace thaw::model {
namespace {

constexpr int kPromptTokens = 70;

std::vector<TokenId> prompt(unsigned seed = 7, int count = kPromptTokens) {
  return random_tokens(count, 520, seed);
}

double largest_error(const std::string& name, const HarnessOptions& options) {
  const checkpoint::GgufFile file = checkpoint::GgufFile::open(tiny_model_path(name)).value();
  Harness harness(tiny_model_path(name), options);
  const auto expected = NaiveLlama(file, harness.config()).forward(prompt());
  const auto actual = all_logits(harness, prompt(), 0);
  double largest = 0;
  for (std::size_t row = 0; row < expected.size(); ++row)
    for (std::size_t i = 0; i < expected[row].size(); ++i)
      largest = std::max(largest, std::abs(expected[row][i] - actual[row][i]));
  return largest;
}

class TinyModel : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Files, TinyModel,
                         testing::Values("f32", "q8_0", "q4_1", "q5_0", "q5_k", "q2_k", "q3_k",
                                         "mixed", "mixed-k", "untied"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::ranges::replace(name, '-', '_');
                           return name;
                         });

// Logits span about -15 to 15.
TEST_P(TinyModel, ExactModeAgreesWithANaiveImplementation) {
  const double error = largest_error(
      GetParam(), {.mode = ops::ComputeMode::kExact32, .kv_dtype = ops::KvDType::kF32});
  RecordProperty("largest_error", std::to_string(error));
  EXPECT_LT(error, 2e-4);
}

// 8-bit activations and bf16 keys cost precision, but not more than this. A random model magnifies
// rounding; the real model's figures are in reference_test.cc.
TEST_P(TinyModel, NativeModeIsNearANaiveImplementation) {
  const double error = largest_error(GetParam(), {});
  RecordProperty("largest_error", std::to_string(error));
  EXPECT_LT(error, 2.0);
}

TEST_P(TinyModel, AnyChunkingGivesTheSameBits) {
  Harness harness(tiny_model_path(GetParam()), {});
  const auto whole = all_logits(harness, prompt(), 0);
  for (const int chunk : {1, 3, 16, 17, 33})
    expect_same_rows(whole, all_logits(harness, prompt(), chunk), "chunk " + std::to_string(chunk));
}

TEST_P(TinyModel, StrangersInTheBatchChangeNothing) {
  Harness harness(tiny_model_path(GetParam()), {.num_blocks = 128});
  const auto tokens = prompt();
  const auto alone = all_logits(harness, tokens, 0);

  // A prefill chunk, a decode row and a second chunk of strangers around ours.
  const auto stranger = prompt(11, 40);
  const auto table = harness.take_table(kPromptTokens);
  const auto stranger_table = harness.take_table(40);
  const auto other_table = harness.take_table(40);
  const std::span<const TokenId> ours(tokens), theirs(stranger);
  const std::vector<int> last = {0};
  harness.step({{{theirs.first(20), 0, stranger_table, {}}}});
  std::vector<std::vector<float>> together;
  for (int i = 0; i < kPromptTokens; i += 10) {
    const std::vector<int> rows = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
    Batch batch;
    batch.sequences.push_back({theirs.subspan(20 + i / 10, 1), 20 + i / 10, stranger_table, last});
    batch.sequences.push_back({ours.subspan(i, 10), i, table, rows});
    batch.sequences.push_back({theirs.first(5 + i / 10), 0, other_table, {}});
    const auto logits = harness.step(batch);
    together.insert(together.end(), logits.begin() + 1, logits.end());
  }
  expect_same_rows(alone, together, "batched");
}

TEST_P(TinyModel, SharedTrunkBlocksGiveTheSameBits) {
  Harness harness(tiny_model_path(GetParam()), {.num_blocks = 128});
  const auto trunk = prompt(3, 48);  // whole blocks
  const auto trunk_table = harness.take_table(48);
  harness.step({{{trunk, 0, trunk_table, {}}}});
  Batch batch;
  std::vector<std::vector<TokenId>> tails;
  std::vector<std::vector<BlockId>> tables;
  const std::vector<int> last = {4};
  for (unsigned i = 0; i < 6; ++i) {
    tails.push_back(prompt(20 + i, 5));
    tables.push_back(trunk_table);
    tables.back().push_back(harness.take_blocks(1)[0]);
  }
  for (std::size_t i = 0; i < tails.size(); ++i)
    batch.sequences.push_back({tails[i], 48, tables[i], last});
  const auto together = harness.step(batch);
  for (std::size_t i = 0; i < tails.size(); ++i) {
    auto whole = trunk;
    whole.insert(whole.end(), tails[i].begin(), tails[i].end());
    const auto alone = all_logits(harness, whole, 0);
    ASSERT_TRUE(same_bits(alone.back(), together[i])) << "branch " << i;
  }
}

TEST_P(TinyModel, ThreadsAndInstructionSetsGiveTheSameBits) {
  Harness one(tiny_model_path(GetParam()), {.isa = "generic"});
  const auto expected = all_logits(one, prompt(), 0);
  for (const int threads : {1, 2}) {
    for (const char* isa : {"generic", "avx2", "avx512vnni"}) {
      if (!ops::CpuDevice::create(1, isa)) continue;  // this processor lacks it
      Harness harness(tiny_model_path(GetParam()), {.threads = threads, .isa = isa});
      EXPECT_EQ(harness.image().digest(), one.image().digest());
      for (const int chunk : {0, 1}) {
        expect_same_rows(expected, all_logits(harness, prompt(), chunk),
                         std::string(isa) + " x" + std::to_string(threads));
      }
    }
  }
}

TEST_P(TinyModel, KvTypesEachAgreeWithThemselves) {
  for (const auto dtype : {ops::KvDType::kBF16, ops::KvDType::kF16, ops::KvDType::kF32}) {
    Harness harness(tiny_model_path(GetParam()), {.kv_dtype = dtype});
    expect_same_rows(all_logits(harness, prompt(), 0), all_logits(harness, prompt(), 7), "kv");
  }
}

TEST_P(TinyModel, GreedyTextVaries) {
  Harness harness(tiny_model_path(GetParam()), {.num_blocks = 256});
  std::vector<TokenId> firsts;
  for (unsigned seed = 0; seed < 8; ++seed) {
    auto tokens = prompt(seed, 20);
    const auto table = harness.take_table(20 + 64);
    const std::vector<int> last = {19};
    auto logits = harness.step({{{tokens, 0, table, last}}});
    std::vector<TokenId> text;
    const std::vector<int> only = {0};
    for (int i = 0; i < 64; ++i) {
      text.push_back(argmax(logits[0]));
      logits = harness.step({{{std::span(&text.back(), 1), 20 + i, table, only}}});
    }
    firsts.push_back(text[0]);
    std::ranges::sort(text);
    const auto distinct = std::ranges::distance(text.begin(), std::ranges::unique(text).begin());
    EXPECT_GT(distinct, 8) << "seed " << seed;
  }
  std::ranges::sort(firsts);
  EXPECT_GT(std::ranges::distance(firsts.begin(), std::ranges::unique(firsts).begin()), 4);
}

TEST(Llama, FrequencyFactorsBendThePositions) {
  const HarnessOptions exact = {.mode = ops::ComputeMode::kExact32, .kv_dtype = ops::KvDType::kF32};
  EXPECT_LT(largest_error("rope-freqs", exact), 2e-4);
  Harness plain(tiny_model_path("f32"), exact);
  Harness bent(tiny_model_path("rope-freqs"), exact);
  EXPECT_FALSE(
      same_bits(all_logits(plain, prompt(), 0).back(), all_logits(bent, prompt(), 0).back()));
}

}  // namespace
}  // namespace thaw::model
