// The default model against Hugging Face transformers in float32 over the same dequantised weights
// (scripts/fixtures/logits_reference.py), on 512 positions of real text. Needs `make model`.

#include <cstdio>
#include <filesystem>

#include <gtest/gtest.h>

#include "tests/model/logits_reference.h"
#include "tests/model/model_harness.h"

namespace thaw::model {
namespace {

class ReferenceTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(std::filesystem::exists(default_model()))
        << "the default model is needed at " << default_model() << ": run `make model`";
  }

  static Agreement measure(const char* name, ops::ComputeMode mode, ops::KvDType kv_dtype) {
    const Reference reference = read_reference();
    Harness harness(default_model(), {.mode = mode, .kv_dtype = kv_dtype, .threads = 2});
    const Agreement agreement = compare(reference, all_logits(harness, reference.tokens, 128));
    std::printf("%-26s top-1 %6.2f %%, logit error: largest %.5f, rms %.6f; logsumexp %.6f\n", name,
                100 * agreement.top1, agreement.largest_error, agreement.rms_error,
                agreement.logsumexp_error);
    return agreement;
  }
};

TEST_F(ReferenceTest, ExactModeIsTheReferenceButForRounding) {
  const Agreement agreement =
      measure("float32, float32 KV", ops::ComputeMode::kExact32, ops::KvDType::kF32);
  EXPECT_LT(agreement.largest_error, 2e-3);
  EXPECT_LT(agreement.logsumexp_error, 1e-3);
  EXPECT_GE(agreement.top1, 0.998);
}

TEST_F(ReferenceTest, Bf16KeysAndValuesAlone) {
  const Agreement agreement =
      measure("float32, bf16 KV", ops::ComputeMode::kExact32, ops::KvDType::kBF16);
  EXPECT_GE(agreement.top1, 0.98);
}

TEST_F(ReferenceTest, EightBitActivationsAlone) {
  const Agreement agreement =
      measure("native, float32 KV", ops::ComputeMode::kNative, ops::KvDType::kF32);
  EXPECT_GE(agreement.top1, 0.98);
}

TEST_F(ReferenceTest, NativeModeAgreesOnTheBestToken) {
  const Agreement agreement =
      measure("native, bf16 KV", ops::ComputeMode::kNative, ops::KvDType::kBF16);
  EXPECT_GE(agreement.top1, 0.98);
  EXPECT_LT(agreement.rms_error, 0.25);
}

}  // namespace
}  // namespace thaw::model
