// Accuracy on the GPU: against this project's own float32 decoder on the CPU for every family, and
// against transformers in float32 for the default model (needs `make model`).

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <numeric>

#include <gtest/gtest.h>

#include "tests/cuda/gpu_test.h"
#include "tests/model/cuda_harness.h"
#include "tests/model/logits_reference.h"
#include "tests/model/model_harness.h"

namespace thaw::model {
namespace {

CudaModelOptions options() {
  CudaModelOptions options;
  options.max_positions = 2048;
  options.max_rows = 1024;
  options.max_sequences = 8;
  return options;
}

Logits every_logit(CudaHarness& harness, const std::vector<TokenId>& tokens) {
  std::vector<int> all(tokens.size());
  std::iota(all.begin(), all.end(), 0);
  const int count = static_cast<int>(tokens.size());
  Logits logits;
  for (auto& [position, row] : harness.run(tokens, harness.take_table(count), 0, count, count, all))
    logits.push_back(std::move(row));
  return logits;
}

class CudaFamilyTest : public cuda::GpuTest, public testing::WithParamInterface<const char*> {};

// bf16 weights and activations: a logit is off by a few per cent of what logits are like; a bias, a
// norm or a rotation that is left out is off by as much as they are.
TEST_P(CudaFamilyTest, IsTheFloat32DecoderButForRounding) {
  const ModelSource source = gguf_source(tiny_model_path(GetParam()));
  Harness cpu(source, {.mode = ops::ComputeMode::kExact32, .kv_dtype = ops::KvDType::kF32});
  const CudaTestWeights weights(source);
  CudaHarness gpu(weights, options(), 64);
  const std::vector<TokenId> tokens = random_tokens(300, cpu.config().vocab_size, 4);
  const Logits expected = all_logits(cpu, tokens, 0);
  const Logits found = every_logit(gpu, tokens);
  ASSERT_EQ(found.size(), expected.size());
  double error = 0;
  double size = 0;
  int same_best = 0;
  for (std::size_t row = 0; row < found.size(); ++row) {
    for (std::size_t i = 0; i < found[row].size(); ++i) {
      error += std::pow(static_cast<double>(found[row][i]) - expected[row][i], 2);
      size += std::pow(static_cast<double>(expected[row][i]), 2);
    }
    same_best += argmax(found[row]) == argmax(expected[row]) ? 1 : 0;
  }
  const double relative = std::sqrt(error / size);
  std::printf("%-14s relative error %.4f, top-1 %.1f %%\n", GetParam(), relative,
              100.0 * same_best / static_cast<double>(found.size()));
  EXPECT_LT(relative, 0.03);
}

INSTANTIATE_TEST_SUITE_P(Tiny, CudaFamilyTest,
                         testing::Values("cuda-f32", "cuda-mixed", "cuda-qwen2", "cuda-qwen3",
                                         "cuda-smollm3"),
                         [](const auto& info) { return std::string(info.param).substr(5); });

using CudaReferenceTest = cuda::GpuTest;

TEST_F(CudaReferenceTest, TheDefaultModelAgreesWithFloat32) {
  ASSERT_TRUE(std::filesystem::exists(default_model()))
      << "the default model is needed at " << default_model() << ": run `make model`";
  const Reference reference = read_reference();
  const CudaTestWeights weights(gguf_source(default_model()));
  CudaHarness harness(weights, options(), 64);
  const Agreement agreement = compare(reference, every_logit(harness, reference.tokens));
  std::printf("bf16 on CUDA: top-1 %6.2f %%, logit error: largest %.5f, rms %.6f; logsumexp %.6f\n",
              100 * agreement.top1, agreement.largest_error, agreement.rms_error,
              agreement.logsumexp_error);
  EXPECT_GE(agreement.top1, 0.99);
  EXPECT_LT(agreement.rms_error, 0.25);
}

}  // namespace
}  // namespace thaw::model
