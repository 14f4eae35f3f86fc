#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <span>
#include <vector>

#include <gtest/gtest.h>

#include "engine/base/half.h"
#include "engine/cuda/buffer.h"
#include "engine/cuda/check.h"
#include "engine/ops/cuda/device.h"
#include "engine/ops/cuda/tiles.h"
#include "tests/cuda/gpu_test.h"

namespace thaw::ops::cuda {

using thaw::cuda::check;
using thaw::cuda::DeviceBuffer;
using thaw::cuda::Stream;

/// A test with a device and a stream; skips where there is no GPU.
class CudaOpsTest : public thaw::cuda::GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (testing::Test::IsSkipped() || testing::Test::HasFatalFailure()) return;
    device = CudaDevice::create(0).value();
    stream = std::make_unique<Stream>();
  }

  std::unique_ptr<CudaDevice> device;
  std::unique_ptr<Stream> stream;
};

/// Tolerances against references in double precision, relative to the size of the terms:
///   product, float32        2^-22 * sqrt(K) of the sum of |terms|: float32 sums of exact products
///   stored as bf16          2^-8: half a unit in the last place is 2^-9
///   attention               2^-7: weights and values are bf16, and so is the result
inline constexpr double kProductTolerance = 0x1p-22;
inline constexpr double kBf16Tolerance = 0x1p-8;
inline constexpr double kAttentionTolerance = 0x1p-7;

inline float widen(Bf16 value) {
  return bf16_to_float(std::bit_cast<std::uint16_t>(value));
}

inline Bf16 narrow(float value) {
  return std::bit_cast<Bf16>(float_to_bf16(value));
}

/// Normal values with an outlier in 64.
inline std::vector<Bf16> random_bf16(std::size_t count, float scale, unsigned seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal(0.0F, scale);
  std::vector<Bf16> values(count);
  for (Bf16& value : values)
    value = narrow(normal(engine) * (engine() % 64 == 0 ? 8.0F : 1.0F));
  return values;
}

template <typename T>
DeviceBuffer<T> to_device(const std::vector<T>& from, const Stream& stream) {
  DeviceBuffer<T> buffer(from.size(), stream);
  thaw::cuda::copy_to_device<T>(from, buffer, stream);
  stream.synchronize();
  return buffer;
}

template <typename T>
std::vector<T> to_host(const DeviceBuffer<T>& from, const Stream& stream) {
  std::vector<T> values(from.size());
  thaw::cuda::copy_to_host<T>(from, values, stream);
  stream.synchronize();
  return values;
}

/// A buffer filled with 0xff: NaN in every float format, so what a kernel leaves out shows.
template <typename T>
DeviceBuffer<T> poisoned(std::size_t count, const Stream& stream) {
  DeviceBuffer<T> buffer(count, stream);
  check(cudaMemsetAsync(buffer.data(), 0xff, count * sizeof(T), stream.view().get()));
  return buffer;
}

/// Cosines and sines of all pairs of a head, position by position; base 10,000.
struct RopeTables {
  RopeTables(int positions, int head_dim) {
    const int half = head_dim / 2;
    for (int p = 0; p < positions; ++p)
      for (int i = 0; i < half; ++i) {
        const double angle = p * std::pow(10000.0, -static_cast<double>(i) / half);
        cos.push_back(static_cast<float>(std::cos(angle)));
        sin.push_back(static_cast<float>(std::sin(angle)));
      }
  }
  std::vector<float> cos, sin;
};

/// True where both hold the same bytes.
template <typename T>
bool same_bits(std::span<const T> a, std::span<const T> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

}  // namespace thaw::ops::cuda
