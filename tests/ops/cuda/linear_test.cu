#include <cmath>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/base/error.h"
#include "engine/ops/cuda/linear.h"
#include "engine/ops/cuda/ptx.cuh"
#include "tests/ops/cuda/cuda_ops_util.cuh"

namespace thaw::ops::cuda {
namespace {

__device__ std::uint32_t hash(std::size_t i, std::uint32_t seed) {
  std::uint32_t h = static_cast<std::uint32_t>(i) * 2654435761U ^ seed;
  h ^= h >> 13;
  h *= 0x5bd1e995U;
  return h ^ h >> 15;
}

// Random values of either sign with an outlier in 97.
__global__ void fill(Bf16* out, std::size_t count, std::uint32_t seed, float scale) {
  for (std::size_t i = blockIdx.x * 256UL + threadIdx.x; i < count; i += gridDim.x * 256UL) {
    const std::uint32_t h = hash(i, seed);
    const float value = (static_cast<float>(h & 0xffff) / 65536.0F - 0.5F) * scale;
    out[i] = __float2bfloat16_rn((h >> 16) % 97 == 0 ? value * 12.0F : value);
  }
}

// The rule itself, read from row-major memory with no staging: each 16 x 8 tile of outputs is one
// chain of mma.sync over K, 16 at a time, from +0.
__global__ void chain(const Bf16* weight, const Bf16* x, float* out, int rows, int num_rows,
                      int cols) {
  const int lane = threadIdx.x % 32;
  const int row = (blockIdx.x * 4 + threadIdx.x / 32) * 16 + lane / 4;
  const int token = blockIdx.y * 8 + lane / 4;
  const auto pair = [&](const Bf16* matrix, int r, int limit, int k) {
    return r < limit ? *reinterpret_cast<const std::uint32_t*>(
                           matrix + static_cast<std::size_t>(r) * cols + k + lane % 4 * 2)
                     : 0U;
  };
  float d[4] = {};
  for (int k = 0; k < cols; k += 16) {
    const std::uint32_t a[4] = {pair(weight, row, rows, k), pair(weight, row + 8, rows, k),
                                pair(weight, row, rows, k + 8), pair(weight, row + 8, rows, k + 8)};
    ptx::mma(d, a, pair(x, token, num_rows, k), pair(x, token, num_rows, k + 8));
  }
  for (int i = 0; i < 4; ++i) {
    const int r = row + i / 2 * 8;
    const int t = blockIdx.y * 8 + lane % 4 * 2 + i % 2;
    if (r < rows && t < num_rows) out[static_cast<std::size_t>(t) * rows + r] = d[i];
  }
}

__global__ void count_differences(const std::uint32_t* a, const std::uint32_t* b, std::size_t count,
                                  unsigned* differ) {
  for (std::size_t i = blockIdx.x * 256UL + threadIdx.x; i < count; i += gridDim.x * 256UL)
    if (a[i] != b[i]) atomicAdd(differ, 1U);
}

struct Problem {
  int rows;
  int cols;
  int num_rows;
  DeviceBuffer<Bf16> plain_weight;
  DeviceBuffer<Bf16> plain_x;
  DeviceBuffer<Bf16> weight;
  DeviceBuffer<Bf16> x;

  Problem(int rows_, int cols_, int num_rows_, const Stream& stream)
      : rows(rows_),
        cols(cols_),
        num_rows(num_rows_),
        plain_weight(static_cast<std::size_t>(rows) * cols, stream),
        plain_x(static_cast<std::size_t>(num_rows) * cols, stream),
        weight(poisoned<Bf16>(weight_elements(rows, cols), stream)),
        x(poisoned<Bf16>(tiles_elements(num_rows, cols), stream)) {
    fill<<<512, 256, 0, stream.view().get()>>>(plain_weight.data(), plain_weight.size(), 1, 0.07F);
    fill<<<512, 256, 0, stream.view().get()>>>(plain_x.data(), plain_x.size(), 2, 2.0F);
    tile_weight({plain_weight.data(), rows, cols, WeightRows::kPlain, 0, weight.data()}, stream);
    tile_rows(plain_x.data(), num_rows, cols, {x.data(), cols}, stream);
  }

  LinearParams params(int count, LinearKernel kernel, float* out) const {
    LinearParams p;
    p.weight = {weight.data(), rows, cols};
    p.x = {x.data(), cols};
    p.num_rows = count;
    p.epilogue = Epilogue::kF32;
    p.out = out;
    p.out_stride = rows;
    p.kernel = kernel;
    return p;
  }
};

class CudaLinearTest : public CudaOpsTest {
 protected:
  unsigned differences(const DeviceBuffer<float>& a, const DeviceBuffer<float>& b,
                       std::size_t count) {
    const DeviceBuffer<unsigned> differ(1, *stream);
    check(cudaMemsetAsync(differ.data(), 0, 4, stream->view().get()));
    count_differences<<<512, 256, 0, stream->view().get()>>>(
        reinterpret_cast<const std::uint32_t*>(a.data()),
        reinterpret_cast<const std::uint32_t*>(b.data()), count, differ.data());
    return to_host(differ, *stream)[0];
  }

  // Every count and both kernels against the chain of all rows at once: a row's bits cannot depend
  // on how many rows it came with.
  void compare(int rows, int cols, std::vector<int> counts) {
    SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(cols));
    const int most = *std::max_element(counts.begin(), counts.end());
    const Problem problem(rows, cols, most, *stream);
    const DeviceBuffer<float> expected =
        poisoned<float>(static_cast<std::size_t>(most) * rows, *stream);
    chain<<<dim3(ceil_div(rows, 64), ceil_div(most, 8)), 128, 0, stream->view().get()>>>(
        problem.plain_weight.data(), problem.plain_x.data(), expected.data(), rows, most, cols);
    check(cudaGetLastError());
    for (const int count : counts) {
      for (const LinearKernel kernel : {LinearKernel::kStream, LinearKernel::kTile}) {
        if (kernel == LinearKernel::kStream && count > 300) continue;
        const DeviceBuffer<float> out =
            poisoned<float>(static_cast<std::size_t>(most) * rows, *stream);
        linear(*device, problem.params(count, kernel, out.data()), *stream);
        EXPECT_EQ(differences(out, expected, static_cast<std::size_t>(count) * rows), 0u)
            << count << " rows, " << (kernel == LinearKernel::kStream ? "stream" : "tile");
        if (testing::Test::HasFailure()) return;
      }
    }
  }
};

TEST_F(CudaLinearTest, TheDefaultModelsShapes) {
  for (const auto& [rows, cols] :
       {std::pair(960, 576), std::pair(576, 576), std::pair(3072, 576), std::pair(576, 1536)})
    compare(rows, cols, {1, 2, 3, 8, 17, 64, 130, 1000, 4001});
  compare(49152, 576, {1, 2, 3, 8, 17, 64, 1000});
}

TEST_F(CudaLinearTest, AnEightBillionLlamasShapes) {
  for (const auto& [rows, cols] : {std::pair(6144, 4096), std::pair(4096, 4096),
                                   std::pair(28672, 4096), std::pair(4096, 14336)})
    compare(rows, cols, {1, 2, 3, 8, 16, 17, 32, 48, 64, 1000, 4001});
  compare(128256, 4096, {1, 3, 8, 17, 64, 200});
}

TEST_F(CudaLinearTest, OddShapes) {
  for (const auto& [rows, cols] : {std::pair(1, 64), std::pair(15, 64), std::pair(77, 128),
                                   std::pair(1000, 192), std::pair(2309, 320)})
    compare(rows, cols,
            {1, 5, 8, 9, 16, 20, 31, 33, 48, 49, 63, 64, 65, 127, 128, 129, 200, 257, 700});
}

// Blocks of 4 to 7 groups at a time and of two passes, the last of which leaves a warp without a
// group (19,200); one stage of K and several, whole and not; every number of tiles of 8 rows.
TEST_F(CudaLinearTest, EveryShapeOfAStage) {
  for (const int rows : {8192, 10240, 12288, 14336, 17408, 19200})
    for (const int cols : {64, 128, 192, 320, 704})
      compare(rows, cols, {8, 16, 24, 32, 40, 48, 64});
}

TEST_F(CudaLinearTest, TheChainIsTheProduct) {
  const int rows = 40;
  const int cols = 1024;
  const int num_rows = 5;
  const Problem problem(rows, cols, num_rows, *stream);
  const DeviceBuffer<float> out = poisoned<float>(rows * num_rows, *stream);
  linear(*device, problem.params(num_rows, LinearKernel::kAuto, out.data()), *stream);
  const auto weight = to_host(problem.plain_weight, *stream);
  const auto x = to_host(problem.plain_x, *stream);
  const auto values = to_host(out, *stream);
  for (int t = 0; t < num_rows; ++t) {
    for (int r = 0; r < rows; ++r) {
      double sum = 0;
      double size = 0;
      for (int k = 0; k < cols; ++k) {
        const double term = static_cast<double>(widen(weight[r * cols + k])) *
                            static_cast<double>(widen(x[t * cols + k]));
        sum += term;
        size += std::abs(term);
      }
      EXPECT_NEAR(values[t * rows + r], sum, kProductTolerance * std::sqrt(cols) * size);
    }
  }
}

TEST_F(CudaLinearTest, ANaNStaysInItsRow) {
  const int rows = 100;
  const int cols = 128;
  for (const LinearKernel kernel : {LinearKernel::kStream, LinearKernel::kTile}) {
    Problem problem(rows, cols, 40, *stream);
    const DeviceBuffer<float> clean = poisoned<float>(40 * rows, *stream);
    linear(*device, problem.params(40, kernel, clean.data()), *stream);
    auto x = to_host(problem.plain_x, *stream);
    x[7 * cols + 3] = narrow(NAN);
    x[21 * cols + 100] = narrow(INFINITY);
    const auto changed = to_device(x, *stream);
    tile_rows(changed.data(), 40, cols, {problem.x.data(), cols}, *stream);
    const DeviceBuffer<float> out = poisoned<float>(40 * rows, *stream);
    linear(*device, problem.params(40, kernel, out.data()), *stream);
    const auto before = to_host(clean, *stream);
    const auto after = to_host(out, *stream);
    for (int t = 0; t < 40; ++t) {
      const std::span<const float> row(after.data() + t * rows, rows);
      if (t == 7)
        EXPECT_THAT(row, testing::Each(testing::IsNan()));
      else if (t != 21)
        EXPECT_TRUE(same_bits(row, std::span<const float>(before.data() + t * rows, rows))) << t;
    }
  }
}

TEST_F(CudaLinearTest, HostAndDeviceTileWeightsAlike) {
  const int cols = 192;
  for (const WeightRows placement : {WeightRows::kPlain, WeightRows::kGate, WeightRows::kUp}) {
    const int rows = 24;
    const int all = 80;
    const auto source = random_bf16(rows * cols, 1, 3);
    const auto plain = to_device(source, *stream);
    const DeviceBuffer<Bf16> tiled = poisoned<Bf16>(weight_elements(all, cols), *stream);
    tile_weight({plain.data(), rows, cols, placement, 16, tiled.data()}, *stream);
    std::vector<std::uint16_t> expected(weight_elements(all, cols), 0xffff);
    tile_weight_on_host({reinterpret_cast<const std::uint16_t*>(source.data()), source.size()},
                        rows, cols, placement, 16, expected);
    const auto out = to_host(tiled, *stream);
    EXPECT_EQ(std::memcmp(out.data(), expected.data(), out.size() * 2), 0);
  }
}

TEST_F(CudaLinearTest, TheSelfTestFindsNoDisagreement) {
  const LinearShape shapes[] = {{6144, 4096}, {4096, 14336}, {960, 576}, {1000, 64}};
  const auto found = linear_self_test(*device, shapes, *stream).value();
  for (const LinearDisagreement& one : found)
    ADD_FAILURE() << one.shape.rows << " x " << one.shape.cols << ", " << one.num_rows
                  << " rows: " << one.outputs << " outputs differ";
}

TEST_F(CudaLinearTest, RefusesShapesThatCannotBe) {
  const Problem problem(64, 64, 4, *stream);
  const DeviceBuffer<float> out(64 * 64, *stream);
  const auto refused = [&](auto change, const char* says) {
    LinearParams params = problem.params(4, LinearKernel::kAuto, out.data());
    change(params);
    try {
      linear(*device, params, *stream);
      ADD_FAILURE() << "accepted; expected: " << says;
    } catch (const Exception& failure) {
      EXPECT_EQ(failure.error().code, Errc::kInvalidArgument);
      EXPECT_THAT(failure.error().message, testing::HasSubstr(says));
    }
  };
  refused([](LinearParams& p) { p.num_rows = 0; }, "num_rows is 0");
  refused([](LinearParams& p) { p.weight.cols = 72; }, "multiple of 64");
  refused([](LinearParams& p) { p.x.cols = 128; }, "x.cols is 128");
  refused([](LinearParams& p) { p.out_stride = 63; }, "out_stride is 63");
  refused([](LinearParams& p) { p.epilogue = Epilogue::kSwigluTiles; }, "multiple of 128");
}

}  // namespace
}  // namespace thaw::ops::cuda
