#include <cmath>

#include <gtest/gtest.h>

#include "engine/ops/cuda/linear.h"
#include "tests/ops/cuda/cuda_ops_util.cuh"

namespace thaw::ops::cuda {
namespace {

// Epilogues are judged from the float32 product that kF32 gives: what they add and where they round
// is then exact, whatever the kernel.
class CudaLinearEpilogueTest : public CudaOpsTest {
 protected:
  static constexpr int kCols = 192;
  static constexpr int kRowCounts[] = {1, 8, 13, 50, 64, 65, 300};

  void make(int rows_, int num_rows_) {
    rows = rows_;
    num_rows = num_rows_;
    const auto plain =
        to_device(random_bf16(static_cast<std::size_t>(rows) * kCols, 0.1F, 1), *stream);
    const auto plain_x =
        to_device(random_bf16(static_cast<std::size_t>(num_rows) * kCols, 1.0F, 2), *stream);
    weight = poisoned<Bf16>(weight_elements(rows, kCols), *stream);
    x = poisoned<Bf16>(tiles_elements(num_rows, kCols), *stream);
    tile_weight({plain.data(), rows, kCols, WeightRows::kPlain, 0, weight.data()}, *stream);
    tile_rows(plain_x.data(), num_rows, kCols, {x.data(), kCols}, *stream);
    stream->synchronize();
  }

  LinearParams params(Epilogue epilogue, void* out, std::int64_t stride, const float* bias) const {
    LinearParams p;
    p.weight = {weight.data(), rows, kCols};
    p.x = {x.data(), kCols};
    p.num_rows = num_rows;
    p.epilogue = epilogue;
    p.out = out;
    p.out_stride = stride;
    p.bias = bias;
    return p;
  }

  std::vector<float> products() {
    const auto out = poisoned<float>(static_cast<std::size_t>(num_rows) * rows, *stream);
    linear(*device, params(Epilogue::kF32, out.data(), rows, nullptr), *stream);
    return to_host(out, *stream);
  }

  int rows = 0;
  int num_rows = 0;
  DeviceBuffer<Bf16> weight;
  DeviceBuffer<Bf16> x;
};

TEST_F(CudaLinearEpilogueTest, Bf16IsTheProductPlusBiasRoundedOnce) {
  for (const int count : kRowCounts) {
    for (const auto& [outputs, stride] :
         {std::pair(80, 80), std::pair(77, 83), std::pair(320, 400)}) {
      make(outputs, count);
      const auto product = products();
      std::vector<float> bias(rows);
      for (int r = 0; r < rows; ++r)
        bias[r] = 0.01F * static_cast<float>(r) - 0.3F;
      const auto device_bias = to_device(bias, *stream);
      for (const bool with : {false, true}) {
        const auto out = poisoned<Bf16>(static_cast<std::size_t>(count) * stride, *stream);
        linear(*device,
               params(Epilogue::kBf16, out.data(), stride, with ? device_bias.data() : nullptr),
               *stream);
        const auto values = to_host(out, *stream);
        for (int t = 0; t < count; ++t) {
          for (int r = 0; r < stride; ++r) {
            const float got = widen(values[static_cast<std::size_t>(t) * stride + r]);
            if (r >= rows) {
              EXPECT_TRUE(std::isnan(got)) << "wrote past the row";
              continue;
            }
            const float sum =
                product[static_cast<std::size_t>(t) * rows + r] + (with ? bias[r] : 0);
            ASSERT_EQ(got, widen(narrow(sum))) << count << " rows, " << t << ", " << r;
          }
        }
      }
    }
  }
}

TEST_F(CudaLinearEpilogueTest, AddF32AddsTheProductToTheResidual) {
  for (const int count : kRowCounts) {
    for (const auto& [outputs, stride] :
         {std::pair(80, 80), std::pair(77, 83), std::pair(320, 320)}) {
      make(outputs, count);
      const auto product = products();
      std::vector<float> residual(static_cast<std::size_t>(count) * stride);
      for (std::size_t i = 0; i < residual.size(); ++i)
        residual[i] = std::sin(static_cast<float>(i)) * 3.0F;
      const auto out = to_device(residual, *stream);
      linear(*device, params(Epilogue::kAddF32, out.data(), stride, nullptr), *stream);
      const auto values = to_host(out, *stream);
      for (int t = 0; t < count; ++t)
        for (int r = 0; r < rows; ++r) {
          const std::size_t at = static_cast<std::size_t>(t) * stride + r;
          ASSERT_EQ(values[at], residual[at] + product[static_cast<std::size_t>(t) * rows + r])
              << count << " rows, " << t << ", " << r;
        }
    }
  }
}

TEST_F(CudaLinearEpilogueTest, SwigluIsTheSameInBothKernelsAndNearTheTruth) {
  for (const int count : kRowCounts) {
    for (const int outputs : {128, 384, 1024}) {
      make(outputs, count);
      const auto product = products();
      const int width = outputs / 2;
      std::vector<std::vector<Bf16>> results;
      for (const LinearKernel kernel : {LinearKernel::kStream, LinearKernel::kTile}) {
        const auto out = poisoned<Bf16>(tiles_elements(count, width), *stream);
        LinearParams p = params(Epilogue::kSwigluTiles, out.data(), 0, nullptr);
        p.kernel = kernel;
        linear(*device, p, *stream);
        const auto values = to_host(out, *stream);
        std::vector<Bf16> rows_only;
        for (int t = 0; t < count; ++t)
          for (int c = 0; c < width; ++c)
            rows_only.push_back(values[tiles_index(t, c, width)]);
        results.push_back(rows_only);
      }
      ASSERT_TRUE(same_bits<Bf16>(results[0], results[1])) << count << " rows, " << outputs;
      for (int t = 0; t < count; ++t) {
        for (int c = 0; c < width; ++c) {
          // Column c's gate is row c / 8 * 16 + c % 8 of the weight, its up 8 further.
          const std::size_t at = static_cast<std::size_t>(t) * rows + c / 8 * 16 + c % 8;
          const double gate = product[at];
          const double expected = gate / (1 + std::exp(-gate)) * product[at + 8];
          ASSERT_NEAR(widen(results[0][static_cast<std::size_t>(t) * width + c]), expected,
                      kBf16Tolerance * std::abs(expected) + 1e-30);
        }
      }
    }
  }
}

// Shapes that take each of the tiles there are on 132 multiprocessors, from the widest and highest
// down, whole ones and ones that end inside of a tile; rows that end inside of one.
TEST_F(CudaLinearEpilogueTest, EveryTileWritesAsTheStreamingKernelDoes) {
  for (const auto& [most, count] :
       {std::pair(6144, 2001), std::pair(4096, 1000), std::pair(4096, 300), std::pair(4096, 100)}) {
    for (const Epilogue epilogue :
         {Epilogue::kBf16, Epilogue::kF32, Epilogue::kAddF32, Epilogue::kSwigluTiles}) {
      const bool swiglu = epilogue == Epilogue::kSwigluTiles;
      for (const int missing : {0, swiglu ? 128 : 14}) {
        make(most - missing, count);
        std::vector<float> bias(rows);
        for (int r = 0; r < rows; ++r)
          bias[r] = 0.01F * static_cast<float>(r % 71) - 0.3F;
        const auto device_bias = to_device(bias, *stream);
        for (const int more : {0, 3, missing}) {  // of a stride: 3 is aligned to nothing
          if (swiglu && more != 0) continue;
          const std::size_t size =
              swiglu ? tiles_elements(count, rows / 2)
                     : static_cast<std::size_t>(count) * static_cast<std::size_t>(rows + more);
          std::vector<float> before(2 * size);
          for (std::size_t i = 0; i < size; ++i)
            before[i] = before[size + i] = static_cast<float>(i % 1021) * 0.006F - 3.0F;
          std::vector<std::vector<float>> results;
          for (const LinearKernel kernel : {LinearKernel::kStream, LinearKernel::kTile}) {
            const auto out = to_device(before, *stream);
            LinearParams p = params(epilogue, out.data(), swiglu ? 0 : rows + more,
                                    swiglu ? nullptr : device_bias.data());
            p.kernel = kernel;
            const std::int64_t distance[] = {static_cast<std::int64_t>(size * sizeof(float))};
            const bool copies = kernel == LinearKernel::kTile && epilogue != Epilogue::kBf16;
            if (copies) p.copies = distance;
            linear(*device, p, *stream);
            const auto values = to_host(out, *stream);
            const auto middle = values.begin() + static_cast<std::ptrdiff_t>(size);
            results.emplace_back(values.begin(), middle);
            if (copies) results.emplace_back(middle, values.end());
          }
          // Of tiles, padding is nobody's.
          if (swiglu) {
            for (std::vector<float>& result : results) {
              const auto* values = reinterpret_cast<const Bf16*>(result.data());
              std::vector<float> kept;
              for (int t = 0; t < count; ++t)
                for (int c = 0; c < rows / 2; ++c)
                  kept.push_back(widen(values[tiles_index(t, c, rows / 2)]));
              result = std::move(kept);
            }
          }
          for (const std::vector<float>& result : results) {
            ASSERT_TRUE(same_bits<float>(results[0], result))
                << rows << " outputs, " << count << " rows, epilogue " << static_cast<int>(epilogue)
                << ", stride " << rows + more << ", " << (&result - results.data());
          }
        }
      }
    }
  }
}

// As ranks store into each other's matrices: at fixed distances, float32 and parts of tiles.
TEST_F(CudaLinearEpilogueTest, CopiesHoldWhatTheOutputHolds) {
  for (const int count : {65, 300}) {
    for (const auto& [outputs, stride] :
         {std::pair(80, 80), std::pair(77, 83), std::pair(320, 400)}) {
      make(outputs, count);
      const auto product = products();
      const std::size_t size = static_cast<std::size_t>(count) * stride;
      const std::int64_t bytes = static_cast<std::int64_t>(size * sizeof(float));
      const std::int64_t distances[] = {bytes, 2 * bytes};
      for (const Epilogue epilogue : {Epilogue::kF32, Epilogue::kAddF32}) {
        const auto out = poisoned<float>(3 * size, *stream);
        const std::vector<float> residual(size, 2.0F);
        thaw::cuda::copy_to_device<float>(residual, {out.data(), size}, *stream);
        LinearParams p = params(epilogue, out.data(), stride, nullptr);
        p.copies = distances;
        linear(*device, p, *stream);
        const auto values = to_host(out, *stream);
        for (int t = 0; t < count; ++t) {
          for (int r = 0; r < stride; ++r) {
            const std::size_t at = static_cast<std::size_t>(t) * stride + r;
            if (r >= rows) {
              EXPECT_EQ(values[at], 2.0F);
              EXPECT_TRUE(std::isnan(values[at + size])) << "wrote past the row";
              continue;
            }
            const float sum = product[static_cast<std::size_t>(t) * rows + r] +
                              (epilogue == Epilogue::kAddF32 ? 2.0F : 0.0F);
            ASSERT_EQ(values[at], sum) << count << " rows, " << t << ", " << r;
            ASSERT_EQ(values[at + size], sum) << count << " rows, " << t << ", " << r;
            ASSERT_EQ(values[at + 2 * size], sum) << count << " rows, " << t << ", " << r;
          }
        }
      }
    }
    constexpr int kWhole = 320;
    constexpr int kFirst = 64;
    constexpr int kOwn = 192;
    make(2 * kOwn, count);
    const auto plain = poisoned<Bf16>(tiles_elements(count, kOwn), *stream);
    linear(*device, params(Epilogue::kSwigluTiles, plain.data(), 0, nullptr), *stream);
    const auto expected = to_host(plain, *stream);
    const std::size_t size = tiles_elements(count, kWhole);
    const auto out = poisoned<Bf16>(2 * size, *stream);
    const std::int64_t distance[] = {static_cast<std::int64_t>(size * sizeof(Bf16))};
    LinearParams p =
        params(Epilogue::kSwigluTiles, out.data() + kFirst * kTokenTile, kWhole, nullptr);
    p.copies = distance;
    linear(*device, p, *stream);
    const auto values = to_host(out, *stream);
    for (int t = 0; t < count; ++t) {
      for (int c = 0; c < kWhole; ++c) {
        const std::size_t at = tiles_index(t, c, kWhole);
        if (c < kFirst || c >= kFirst + kOwn) {
          EXPECT_TRUE(std::isnan(widen(values[at]))) << "wrote past the part";
          continue;
        }
        const float wanted = widen(expected[tiles_index(t, c - kFirst, kOwn)]);
        ASSERT_EQ(widen(values[at]), wanted) << count << " rows, " << t << ", " << c;
        ASSERT_EQ(widen(values[at + size]), wanted) << count << " rows, " << t << ", " << c;
      }
    }
  }
  make(80, 8);
  const auto out = poisoned<float>(2 * 8 * 80, *stream);
  const std::int64_t distance[] = {8 * 80 * 4};
  LinearParams p = params(Epilogue::kF32, out.data(), 80, nullptr);
  p.copies = distance;
  EXPECT_THROW(linear(*device, p, *stream), Exception) << "the streaming kernel stores none";
}

}  // namespace
}  // namespace thaw::ops::cuda
