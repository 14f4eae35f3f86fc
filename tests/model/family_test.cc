// Every family against transformers in float32 (scripts/fixtures/tiny_families.py), with prompts
// that cross windows and RoPE scaling, and against itself however rows are grouped.

#include <algorithm>
#include <cmath>
#include <fstream>
#include <set>

#include <gtest/gtest.h>

#include "engine/model/rope_frequencies.h"
#include "tests/model/model_harness.h"
#include "tests/model/reference_file.h"

namespace thaw::model {
namespace {

struct Reference : TopLogits {
  std::uint32_t vocab = 0;
  std::vector<std::uint32_t> rows;
  std::vector<float> whole;  // [rows, vocab]
};

Reference read_reference(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const auto sizes = read_sizes(file, path, "THAWLGT2", 4);
  Reference reference;
  reference.vocab = sizes[2];
  read_top_logits(file, sizes[0], sizes[1], reference);
  reference.rows = read_values<std::uint32_t>(file, sizes[3]);
  reference.whole = read_values<float>(file, std::size_t{sizes[3]} * reference.vocab);
  check_whole(file, path);
  return reference;
}

/// The largest error of a logit or of a logsumexp.
double largest_error(const Reference& reference, const std::vector<std::vector<float>>& logits) {
  double largest = 0;
  const auto note = [&largest](double ours, double theirs) {
    largest = std::isnan(ours) ? INFINITY : std::max(largest, std::abs(ours - theirs));
  };
  for (std::size_t row = 0; row < logits.size(); ++row) {
    for (std::size_t i = row * reference.top; i < (row + 1) * reference.top; ++i)
      note(logits[row][reference.ids[i]], reference.logits[i]);
    const double best = *std::ranges::max_element(logits[row]);
    double sum = 0;
    for (const float logit : logits[row])
      sum += std::exp(logit - best);
    note(best + std::log(sum), reference.logsumexp[row]);
  }
  for (std::size_t i = 0; i < reference.rows.size(); ++i) {
    for (std::size_t id = 0; id < reference.vocab; ++id)
      note(logits[reference.rows[i]][id], reference.whole[i * reference.vocab + id]);
  }
  return largest;
}

class FamilyTest : public testing::TestWithParam<const char*> {
 protected:
  std::string path() const { return family_path(GetParam()); }
  ModelSource source() const { return hf_source(path()); }
  Reference reference() const { return read_reference(path() + "/reference.bin"); }

  /// Logits of all rows in chunks of `chunk`.
  std::vector<std::vector<float>> logits(const HarnessOptions& options, int chunk) const {
    Harness harness(source(), options);
    return all_logits(harness, reference().tokens, chunk);
  }
};

TEST_P(FamilyTest, ExactModeAgreesWithTransformers) {
  const double error = largest_error(reference(), logits(kExact, 0));
  RecordProperty("largest_error", std::to_string(error));
  std::printf("%s, float32: largest error %.2g\n", GetParam(), error);
  EXPECT_LT(error, 1e-4);
}

// Keys and values in bf16, as served, cost up to 0.06 of logits that span -6 to 6.
TEST_P(FamilyTest, NativeModeIsNearTransformers) {
  const double error = largest_error(reference(), logits({}, 0));
  RecordProperty("largest_error", std::to_string(error));
  std::printf("%s, native with bf16 KV: largest error %.2g\n", GetParam(), error);
  EXPECT_LT(error, 0.1);
}

// Weights rounded to Q8_0, and 8-bit activations beside them, cost up to 0.46.
TEST_P(FamilyTest, Q8IsNearTransformers) {
  const double error = largest_error(reference(), logits({.quantize = ops::Quantize::kQ8_0}, 0));
  RecordProperty("largest_error", std::to_string(error));
  std::printf("%s, Q8_0 with bf16 KV: largest error %.2g\n", GetParam(), error);
  EXPECT_LT(error, 0.6);
}

TEST_P(FamilyTest, AnyChunkingGivesTheSameBits) {
  for (const auto quantize : {ops::Quantize::kNone, ops::Quantize::kQ8_0}) {
    const HarnessOptions options = {.quantize = quantize};
    const auto whole = logits(options, 0);
    for (const int chunk : {1, 33, 100})
      expect_same_rows(whole, logits(options, chunk), "chunk " + std::to_string(chunk));
  }
}

TEST_P(FamilyTest, ThreadsAndInstructionSetsGiveTheSameBits) {
  const auto expected = logits({.isa = "generic"}, 0);
  for (const char* isa : {"avx2", "avx512vnni"}) {
    if (!ops::CpuDevice::create(1, isa)) continue;  // this processor lacks it
    expect_same_rows(expected, logits({.threads = 2, .isa = isa}, 0), isa);
    expect_same_rows(expected, logits({.isa = isa}, 50), std::string(isa) + " in chunks");
  }
}

// Each feature matters: a model without it, or with a window that is off by one, is far away.
TEST_P(FamilyTest, ChangedFeaturesAreSeen) {
  const auto error_with = [this](const auto& change) {
    ModelSource changed = source();
    change(changed.config);
    Harness harness(changed, kExact);
    return largest_error(reference(), all_logits(harness, reference().tokens, 0));
  };
  const ModelConfig config = source().config;
  EXPECT_GT(error_with([](ModelConfig& c) { c.rope.half_split = false; }), 0.01);
  EXPECT_GT(error_with([](ModelConfig& c) { c.layers[1].rope = !c.layers[1].rope; }), 0.01);
  if (config.rope.scaling != RopeScaling::kNone) {
    EXPECT_GT(error_with([](ModelConfig& c) { c.rope.scaling = RopeScaling::kNone; }), 0.01);
  }
  if (config.rope.scaling == RopeScaling::kYarn) {
    EXPECT_GT(error_with([](ModelConfig& c) { c.rope.magnitude = 1.0; }), 0.01);
    EXPECT_GT(error_with([](ModelConfig& c) { c.rope.truncate = !c.rope.truncate; }), 0.001);
  }
  if (config.layers[1].window > 0) {
    EXPECT_GT(error_with([](ModelConfig& c) { c.layers[1].window += 1; }), 0.001);
    EXPECT_GT(error_with([](ModelConfig& c) { c.layers[1].window = 0; }), 0.01);
  }
}

// A fixture proves nothing about a region that its prompt does not reach.
TEST_P(FamilyTest, ThePromptCrossesWindowsAndScaling) {
  const ModelConfig config = source().config;
  const auto length = static_cast<int>(reference().tokens.size());
  const int windowed = static_cast<int>(
      std::ranges::count_if(config.layers, [](const auto& layer) { return layer.window > 0; }));
  for (const LayerConfig& layer : config.layers)
    EXPECT_LT(layer.window, length);
  const std::string name = GetParam();
  EXPECT_EQ(windowed, name == "mistral"        ? 3
                      : name == "qwen2-window" ? 1
                      : name == "smollm3"      ? 2
                                               : 0);
  if (config.rope.scaling == RopeScaling::kNone) return;
  RopeConfig plain = config.rope;
  plain.scaling = RopeScaling::kNone;
  const auto trained = rope_frequencies(plain, {});
  const auto scaled = rope_frequencies(config.rope, {});
  std::set<std::string> regions;
  for (std::size_t i = 0; i < trained.size(); ++i) {
    const double ratio = trained[i] / scaled[i];
    if (std::abs(ratio - 1.0) < 1e-9) {
      regions.insert("as trained");
    } else if (std::abs(ratio - config.rope.factor) < 1e-9) {
      regions.insert("divided");
    } else {
      regions.insert("between");
    }
  }
  if (config.rope.scaling == RopeScaling::kLinear) {
    EXPECT_EQ(regions, (std::set<std::string>{"divided"}));
  } else {
    EXPECT_EQ(regions, (std::set<std::string>{"as trained", "between", "divided"}));
    EXPECT_GT(length, 3 * config.rope.original_positions);
  }
}

// GGUF files with quantised weights, of the families that no other test has so.
TEST(QuantizedFamily, ChunksThreadsAndInstructionSetsGiveTheSameBits) {
  for (const char* name : {"qwen2-q4_1", "qwen3-q8_0", "smollm3-mixed"}) {
    const ModelSource source = gguf_source(tiny_model_path(name));
    const auto tokens = random_tokens(300, source.config.vocab_size, 3);
    Harness one(source, {.isa = "generic"});
    const auto expected = all_logits(one, tokens, 0);
    for (const char* isa : {"generic", "avx2", "avx512vnni"}) {
      if (!ops::CpuDevice::create(1, isa)) continue;  // this processor lacks it
      Harness harness(source, {.threads = 2, .isa = isa});
      expect_same_rows(expected, all_logits(harness, tokens, 29), std::string(name) + " " + isa);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Families, FamilyTest,
                         testing::Values("llama2", "llama3", "llama-linear", "llama-yarn",
                                         "llama-yarn-exact", "mistral", "qwen2", "qwen2-window",
                                         "qwen3", "smollm3"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::ranges::replace(name, '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace thaw::model
