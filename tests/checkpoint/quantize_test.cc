// Against tests/data/logits_quantize.bin, made by the independent `gguf` package.

#include "engine/checkpoint/quantize.h"

#include <cmath>
#include <cstdint>
#include <fstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace thaw::checkpoint {
namespace {

TEST(Quantize, Q8_0EqualsTheReferenceBitForBit) {
  std::ifstream file(std::string(THAW_SOURCE_DIR) + "/tests/data/logits_quantize.bin",
                     std::ios::binary);
  std::uint32_t blocks = 0;
  file.read(reinterpret_cast<char*>(&blocks), sizeof(blocks));
  ASSERT_EQ(blocks, 19u);
  std::vector<float> values(std::size_t{32} * blocks);
  std::vector<std::byte> expected(std::size_t{34} * blocks);
  file.read(reinterpret_cast<char*>(values.data()),
            static_cast<std::streamsize>(values.size() * sizeof(float)));
  file.read(reinterpret_cast<char*>(expected.data()),
            static_cast<std::streamsize>(expected.size()));
  ASSERT_TRUE(file) << "the fixture is truncated";
  std::vector<std::byte> stored(expected.size(), std::byte{0xee});
  ASSERT_TRUE(quantize_q8_0(values, stored));
  for (std::size_t i = 0; i < stored.size(); ++i)
    ASSERT_EQ(stored[i], expected[i]) << "block " << i / 34 << ", byte " << i % 34;
}

TEST(Quantize, RefusesWhatHasNoScale) {
  std::vector<std::byte> stored(68);
  for (const float bad : {std::nanf(""), INFINITY, -INFINITY, 9e6F}) {
    std::vector<float> values(64, 1.0F);
    values[3] = bad;  // the block behind it is fine
    EXPECT_FALSE(quantize_q8_0(values, stored)) << bad;
  }
  EXPECT_TRUE(quantize_q8_0(std::vector<float>(64, 8e6F), stored));
}

// A scale too small for a reciprocal gives zeros, not what a conversion of infinity happens to be.
TEST(Quantize, SubnormalsBecomeZero) {
  std::vector<std::byte> stored(34, std::byte{0xee});
  EXPECT_TRUE(quantize_q8_0(std::vector<float>(32, 1e-40F), stored));
  EXPECT_EQ(stored, std::vector<std::byte>(34));
}

}  // namespace
}  // namespace thaw::checkpoint
