// Against tests/data/logits_dequantize.bin, made by the independent `gguf` package.

#include "engine/checkpoint/dequantize.h"

#include <cstring>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace thaw::checkpoint {
namespace {

struct Sample {
  std::vector<std::byte> stored;
  std::vector<float> expanded;
};

std::map<std::string, Sample> read_samples() {
  std::ifstream file(std::string(THAW_SOURCE_DIR) + "/tests/data/logits_dequantize.bin",
                     std::ios::binary);
  std::map<std::string, Sample> samples;
  char name[9] = {};
  while (file.read(name, 8)) {
    std::uint32_t sizes[2] = {};
    file.read(reinterpret_cast<char*>(sizes), sizeof(sizes));
    Sample& sample = samples[name];
    sample.stored.resize(sizes[0]);
    sample.expanded.resize(sizes[1]);
    file.read(reinterpret_cast<char*>(sample.stored.data()), sizes[0]);
    file.read(reinterpret_cast<char*>(sample.expanded.data()), sizes[1] * sizeof(float));
    EXPECT_TRUE(file) << "the fixture is truncated at " << name;
  }
  return samples;
}

TEST(Dequantize, EveryTypeEqualsTheReferenceBitForBit) {
  const auto samples = read_samples();
  ASSERT_EQ(samples.size(), 14u);
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_0,
                            DType::kQ4_1, DType::kQ4_K, DType::kQ6_K, DType::kQ5_0, DType::kQ5_1,
                            DType::kQ5_K, DType::kQ2_K, DType::kQ3_K, DType::kIQ4_NL}) {
    const std::string name(dtype_name(dtype));
    ASSERT_TRUE(samples.contains(name)) << name;
    const Sample& sample = samples.at(name);
    const auto blocks = sample.stored.size() / dtype_block_bytes(dtype);
    EXPECT_EQ(sample.stored.size() % dtype_block_bytes(dtype), 0u) << name;
    ASSERT_EQ(sample.expanded.size(),
              blocks * static_cast<std::size_t>(dtype_block_elements(dtype)))
        << name;
    std::vector<float> out(sample.expanded.size());
    dequantize(dtype, sample.stored, out);
    for (std::size_t i = 0; i < out.size(); ++i)
      ASSERT_EQ(out[i], sample.expanded[i]) << name << ", element " << i;
  }
}

}  // namespace
}  // namespace thaw::checkpoint
