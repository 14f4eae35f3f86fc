#pragma once

#include <bit>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "engine/base/half.h"
#include "engine/checkpoint/dequantize.h"
#include "engine/ops/device.h"
#include "engine/ops/packed_weight.h"

namespace thaw::ops::testing {

using checkpoint::DType;

/// Instruction sets that this processor can run, generic first.
inline std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const char* name : {"generic", "avx2", "avx512vnni"}) {
    if (CpuDevice::create(1, name)) names.emplace_back(name);
  }
  return names;
}

inline std::unique_ptr<CpuDevice> make_device(const std::string& isa, int threads = 1) {
  return std::move(CpuDevice::create(threads, isa)).value();
}

inline std::vector<float> random_floats(std::size_t count, std::uint32_t seed,
                                        float spread = 1.0F) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal(0.0F, spread);
  std::vector<float> values(count);
  for (float& value : values)
    value = normal(engine);
  return values;
}

/// Bits of `a` and `b` agree, except that any NaN equals any NaN.
inline ::testing::AssertionResult same_bits(const std::vector<float>& a,
                                            const std::vector<float>& b) {
  if (a.size() != b.size()) return ::testing::AssertionFailure() << a.size() << " != " << b.size();
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (std::isnan(a[i]) && std::isnan(b[i])) continue;
    if (std::bit_cast<std::uint32_t>(a[i]) != std::bit_cast<std::uint32_t>(b[i])) {
      return ::testing::AssertionFailure()
             << "element " << i << " of " << a.size() << ": " << a[i] << " is not " << b[i];
    }
  }
  return ::testing::AssertionSuccess();
}

/// Random stored bytes of a [rows, cols] matrix whose values are about `spread` in size.
inline std::vector<std::byte> random_matrix(DType dtype, std::int64_t rows, std::int64_t cols,
                                            std::uint32_t seed) {
  std::mt19937 engine(seed);
  const auto elements = static_cast<std::size_t>(checkpoint::dtype_block_elements(dtype));
  const std::size_t block_bytes = checkpoint::dtype_block_bytes(dtype);
  const std::size_t blocks = static_cast<std::size_t>(rows * cols) / elements;
  std::vector<std::byte> stored(blocks * block_bytes);
  const auto half = [&engine](float low, float high) {
    return float_to_f16(std::uniform_real_distribution<float>(low, high)(engine));
  };
  const auto put = [&stored](std::size_t at, std::uint16_t value) {
    std::memcpy(stored.data() + at, &value, 2);
  };
  for (std::size_t block = 0; block < blocks; ++block) {
    const std::size_t at = block * block_bytes;
    if (elements > 1) {
      for (std::size_t i = 0; i < block_bytes; ++i)
        stored[at + i] = static_cast<std::byte>(engine() & 255);
    }
    switch (dtype) {
      case DType::kF32: {
        const float value = std::normal_distribution<float>(0.0F, 0.05F)(engine);
        std::memcpy(stored.data() + at, &value, 4);
        break;
      }
      case DType::kF16:
        put(at, half(-0.1F, 0.1F));
        break;
      case DType::kBF16:
        put(at, float_to_bf16(f16_to_float(half(-0.1F, 0.1F))));
        break;
      case DType::kQ8_0:
        put(at, half(-0.001F, 0.001F));
        break;
      case DType::kQ4_0:
        put(at, half(-0.02F, 0.02F));
        break;
      case DType::kQ4_1:
        put(at, half(0.0F, 0.02F));
        put(at + 2, half(-0.2F, 0.0F));
        break;
      case DType::kQ4_K:
        put(at, half(0.0F, 0.0005F));
        put(at + 2, half(0.0F, 0.003F));
        break;
      case DType::kQ6_K:
        put(at + 208, half(-0.0001F, 0.0001F));
        break;
      case DType::kQ5_0:
        put(at, half(-0.01F, 0.01F));
        break;
      case DType::kQ5_1:
        put(at, half(0.0F, 0.01F));
        put(at + 2, half(-0.2F, 0.0F));
        break;
      case DType::kQ5_K:
        put(at, half(0.0F, 0.00025F));
        put(at + 2, half(0.0F, 0.003F));
        break;
      case DType::kQ2_K:
        put(at + 80, half(0.0F, 0.005F));
        put(at + 82, half(0.0F, 0.005F));
        break;
      case DType::kQ3_K:
        put(at + 108, half(-0.001F, 0.001F));
        break;
      case DType::kIQ4_NL:
        put(at, half(-0.001F, 0.001F));
        break;
    }
  }
  return stored;
}

/// A packed matrix and the floats that its source means.
struct TestWeight {
  std::vector<std::byte> packed;
  std::vector<float> values;
  WeightView view;
};

inline TestWeight make_weight(DType dtype, std::int64_t rows, std::int64_t cols, std::uint32_t seed,
                              ComputeMode mode = ComputeMode::kNative) {
  TestWeight weight;
  const std::vector<std::byte> stored = random_matrix(dtype, rows, cols, seed);
  weight.values.resize(static_cast<std::size_t>(rows * cols));
  checkpoint::dequantize(dtype, stored, weight.values);
  const Packing packing = choose_packing(dtype, mode);
  weight.packed.resize(packed_bytes(packing, rows, cols), std::byte{0xee});
  ThreadPool threads(1);
  pack_matrix(dtype, stored, rows, cols, packing, weight.packed, threads).value();
  weight.view = {packing, rows, cols, weight.packed.data()};
  return weight;
}

inline constexpr DType kAllDTypes[] = {DType::kF32,  DType::kF16,   DType::kBF16, DType::kQ8_0,
                                       DType::kQ4_0, DType::kQ4_1,  DType::kQ4_K, DType::kQ6_K,
                                       DType::kQ5_0, DType::kQ5_1,  DType::kQ5_K, DType::kQ2_K,
                                       DType::kQ3_K, DType::kIQ4_NL};

}  // namespace thaw::ops::testing
