#include <cmath>

#include <gtest/gtest.h>

#include "engine/ops/cuda/elementwise.h"
#include "engine/ops/cuda/linear.h"
#include "tests/ops/cuda/cuda_ops_util.cuh"

namespace thaw::ops::cuda {
namespace {

std::vector<float> random_floats(std::size_t count, unsigned seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal(0.0F, 1.0F);
  std::vector<float> values(count);
  for (float& value : values)
    value = normal(engine);
  return values;
}

using CudaElementwiseTest = CudaOpsTest;

TEST_F(CudaElementwiseTest, RmsNormOfEachRowAloneAndNearTheTruth) {
  // Few rows, and so many that two share a block, the last one with nobody.
  for (const auto& [width, rows] :
       {std::pair(64, 70), std::pair(576, 70), std::pair(4096, 70), std::pair(5120, 70),
        std::pair(9216, 70), std::pair(64, 1025), std::pair(576, 1025), std::pair(4096, 1030),
        std::pair(5184, 1025)}) {
    const auto x = random_floats(static_cast<std::size_t>(rows) * width, 1);
    const auto weight = random_floats(width, 2);
    const auto device_x = to_device(x, *stream);
    const auto device_weight = to_device(weight, *stream);
    const auto out = poisoned<Bf16>(tiles_elements(rows, width), *stream);
    RmsNormParams params{device_x.data(),    width, device_weight.data(), 1e-5F, rows, nullptr,
                         {out.data(), width}};
    rms_norm(*device, params, *stream);
    const auto all = to_host(out, *stream);
    for (const int row : {0, 1, 63, 64, 69, rows - 2, rows - 1}) {
      const std::vector<std::int32_t> index = {row};
      const auto rows_of = to_device(index, *stream);
      const auto one = poisoned<Bf16>(tiles_elements(1, width), *stream);
      params.rows = rows_of.data();
      params.num_rows = 1;
      params.out.data = one.data();
      rms_norm(*device, params, *stream);
      const auto alone = to_host(one, *stream);
      double mean = 0;
      for (int c = 0; c < width; ++c)
        mean += std::pow(static_cast<double>(x[row * width + c]), 2) / width;
      for (int c = 0; c < width; ++c) {
        const float value = widen(all[tiles_index(row, c, width)]);
        ASSERT_EQ(value, widen(alone[tiles_index(0, c, width)]));
        const double truth = x[row * width + c] / std::sqrt(mean + 1e-5) * weight[c];
        ASSERT_NEAR(value, truth, kBf16Tolerance * std::abs(truth) + 1e-12);
      }
    }
  }
}

TEST_F(CudaElementwiseTest, EmbeddingWidensRowsOfTheTiledTable) {
  const int vocabulary = 100;
  const int width = 192;
  const auto table = random_bf16(vocabulary * width, 1, 3);
  const auto plain = to_device(table, *stream);
  const auto tiled = poisoned<Bf16>(weight_elements(vocabulary, width), *stream);
  tile_weight({plain.data(), vocabulary, width, WeightRows::kPlain, 0, tiled.data()}, *stream);
  const std::vector<std::int32_t> ids = {0, 99, 17, 100, -1};
  const auto device_ids = to_device(ids, *stream);
  const auto out = poisoned<float>(ids.size() * width, *stream);
  embedding(*device, {{tiled.data(), vocabulary, width}, device_ids.data(), 5, out.data()},
            *stream);
  const auto values = to_host(out, *stream);
  for (int i = 0; i < 5; ++i)
    for (int c = 0; c < width; ++c) {
      if (i < 3)
        ASSERT_EQ(values[i * width + c], widen(table[ids[i] * width + c]));
      else
        ASSERT_TRUE(std::isnan(values[i * width + c]));
    }
}

class CudaRopeTest : public CudaOpsTest {
 protected:
  void make(AttentionShape shape_) {
    shape = shape_;
    const RopeTables tables(kPositions, shape.head_dim);
    cos = tables.cos;
    sin = tables.sin;
    width = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim;
    qkv = random_bf16(static_cast<std::size_t>(kRows) * width, 1, 5);
    for (int r = 0; r < kRows; ++r) {
      positions.push_back((r * 37 + 5) % kPositions);
      blocks.push_back(static_cast<BlockId>(kRows - 1 - r));
    }
    norm = random_floats(shape.head_dim, 6);
  }

  struct Out {
    std::vector<Bf16> qkv;
    std::vector<Bf16> pool;
  };

  Out run(bool half_split, bool with_norm) {
    const DeviceKv sizes{nullptr, 2, shape.num_kv_heads, shape.head_dim};
    const auto pool = poisoned<Bf16>(sizes.block_elements() * kRows, *stream);
    const auto device_qkv = to_device(qkv, *stream);
    const auto device_positions = to_device(positions, *stream);
    const auto device_blocks = to_device(blocks, *stream);
    const auto device_cos = to_device(cos, *stream);
    const auto device_sin = to_device(sin, *stream);
    const auto device_norm = to_device(norm, *stream);
    RopeAndStoreParams params;
    params.qkv = device_qkv.data();
    params.stride = width;
    params.num_rows = kRows;
    params.shape = shape;
    params.positions = device_positions.data();
    params.blocks = device_blocks.data();
    params.cos = device_cos.data();
    params.sin = device_sin.data();
    params.half_split = half_split;
    params.q_norm = params.k_norm = with_norm ? device_norm.data() : nullptr;
    params.norm_eps = 1e-6F;
    params.kv = {pool.data(), 2, shape.num_kv_heads, shape.head_dim};
    params.layer = 1;
    rope_and_store(*device, params, *stream);
    return {to_host(device_qkv, *stream), to_host(pool, *stream)};
  }

  // The rotated head at `head` of a row, in double precision.
  std::vector<double> rotated(int row, int head, bool half_split, bool with_norm) const {
    const int d_head = shape.head_dim;
    std::vector<double> x(d_head);
    double mean = 0;
    for (int d = 0; d < d_head; ++d) {
      x[d] = widen(qkv[static_cast<std::size_t>(row) * width + head * d_head + d]);
      mean += x[d] * x[d] / d_head;
    }
    if (with_norm)
      for (int d = 0; d < d_head; ++d)
        x[d] = x[d] / std::sqrt(mean + 1e-6) * norm[d];
    std::vector<double> out(d_head);
    for (int i = 0; i < d_head / 2; ++i) {
      const int a = half_split ? i : 2 * i;
      const int b = half_split ? i + d_head / 2 : 2 * i + 1;
      const double c = cos[positions[row] * d_head / 2 + i];
      const double s = sin[positions[row] * d_head / 2 + i];
      out[a] = x[a] * c - x[b] * s;
      out[b] = x[a] * s + x[b] * c;
    }
    return out;
  }

  static constexpr int kRows = 21;
  static constexpr int kPositions = 500;
  AttentionShape shape;
  int width = 0;
  std::vector<float> cos, sin, norm;
  std::vector<Bf16> qkv;
  std::vector<std::int32_t> positions;
  std::vector<BlockId> blocks;
};

TEST_F(CudaRopeTest, ManyRowsAreRotatedAsFew) {
  for (const AttentionShape& one : {AttentionShape{9, 3, 64}, AttentionShape{32, 8, 128}}) {
    positions.clear();
    blocks.clear();
    make(one);
    const int rows = 301;  // heads share a warp
    const auto many = random_bf16(static_cast<std::size_t>(rows) * width, 1, 7);
    std::vector<std::int32_t> at(rows);
    std::vector<BlockId> where(rows);
    for (int r = 0; r < rows; ++r) {
      at[r] = r + 100;
      where[r] = r == 7 ? -1 : r / kBlockSize;
    }
    const auto device_at = to_device(at, *stream);
    const auto device_where = to_device(where, *stream);
    const auto device_cos = to_device(cos, *stream);
    const auto device_sin = to_device(sin, *stream);
    const auto device_norm = to_device(norm, *stream);
    const auto rotated = [&](int step) {
      const DeviceKv sizes{nullptr, 2, shape.num_kv_heads, shape.head_dim};
      const auto pool = poisoned<Bf16>(sizes.block_elements() * 20, *stream);
      const auto device_qkv = to_device(many, *stream);
      for (int first = 0; first < rows; first += step) {
        RopeAndStoreParams params;
        params.qkv = device_qkv.data() + static_cast<std::size_t>(first) * width;
        params.stride = width;
        params.num_rows = std::min(step, rows - first);
        params.shape = shape;
        params.positions = device_at.data() + first;
        params.blocks = device_where.data() + first;
        params.cos = device_cos.data();
        params.sin = device_sin.data();
        params.k_norm = device_norm.data();
        params.norm_eps = 1e-6F;
        params.kv = {pool.data(), 2, shape.num_kv_heads, shape.head_dim};
        params.layer = 1;
        rope_and_store(*device, params, *stream);
      }
      return Out{to_host(device_qkv, *stream), to_host(pool, *stream)};
    };
    const Out whole = rotated(rows);
    const Out parts = rotated(50);
    EXPECT_TRUE(same_bits<Bf16>(whole.qkv, parts.qkv));
    EXPECT_TRUE(same_bits<Bf16>(whole.pool, parts.pool));
  }
}

TEST_F(CudaRopeTest, RotatesQueriesInPlaceAndStoresKeysAndValues) {
  for (const AttentionShape& one : {AttentionShape{9, 3, 64}, AttentionShape{8, 2, 128}}) {
    positions.clear();
    blocks.clear();
    make(one);
    for (const bool half_split : {true, false}) {
      for (const bool with_norm : {false, true}) {
        const Out out = run(half_split, with_norm);
        DeviceKv kv{const_cast<Bf16*>(out.pool.data()), 2, shape.num_kv_heads, shape.head_dim};
        for (int r = 0; r < kRows; ++r) {
          for (int h = 0; h < shape.num_heads + shape.num_kv_heads; ++h) {
            const auto truth = rotated(r, h, half_split, with_norm);
            const int kv_head = h - shape.num_heads;
            for (int d = 0; d < shape.head_dim; ++d) {
              const int slot = kv.slab_index(positions[r] % kBlockSize, d);
              const float got =
                  kv_head < 0
                      ? widen(out.qkv[static_cast<std::size_t>(r) * width + h * shape.head_dim + d])
                      : widen(kv.slab(blocks[r], 1, false, kv_head)[slot]);
              ASSERT_NEAR(got, truth[d], kBf16Tolerance * std::abs(truth[d]) + 1e-5);
              if (kv_head < 0) continue;
              const std::size_t v = static_cast<std::size_t>(r) * width +
                                    (h + shape.num_kv_heads) * shape.head_dim + d;
              ASSERT_EQ(widen(kv.slab(blocks[r], 1, true, kv_head)[slot]), widen(qkv[v]));
            }
          }
        }
        // Each row wrote its own slot and nothing else.
        const auto written = std::count_if(out.pool.begin(), out.pool.end(),
                                           [](Bf16 x) { return !std::isnan(widen(x)); });
        EXPECT_EQ(written, 2LL * kRows * shape.num_kv_heads * shape.head_dim);
      }
    }
  }
}

TEST_F(CudaRopeTest, AValueThatIsNotFiniteBecomesANaNKey) {
  make({4, 2, 128});
  const std::size_t v_at = 3UL * width + (4 + 2) * 128;  // row 3, value head 0
  qkv[v_at + 77] = narrow(INFINITY);
  const Out out = run(true, false);
  const DeviceKv kv{const_cast<Bf16*>(out.pool.data()), 2, 2, 128};
  for (int d = 0; d < 128; ++d) {
    const int slot = kv.slab_index(positions[3] % kBlockSize, d);
    EXPECT_TRUE(std::isnan(widen(kv.slab(blocks[3], 1, false, 0)[slot])));
    EXPECT_EQ(widen(kv.slab(blocks[3], 1, true, 0)[slot]), 0.0F);
    EXPECT_FALSE(std::isnan(widen(kv.slab(blocks[3], 1, false, 1)[slot])));
  }
}

TEST_F(CudaElementwiseTest, ArgmaxTakesTheLowestOfTheBest) {
  const int vocabulary = 49152;
  auto logits = random_floats(6UL * vocabulary, 8);
  const auto at = [&](int row, int id) -> float& {
    return logits[static_cast<std::size_t>(row) * vocabulary + id];
  };
  at(0, 49151) = 100;
  at(1, 30000) = at(1, 7) = at(1, 49000) = 50;
  at(2, 5) = NAN;
  at(3, 0) = INFINITY;
  for (int i = 0; i < vocabulary; ++i)
    at(4, i) = -INFINITY;
  for (int i = 0; i < vocabulary; ++i)
    at(5, i) = -3.5F;
  const auto device_logits = to_device(logits, *stream);
  const auto out = poisoned<std::int32_t>(6, *stream);
  argmax(*device, {device_logits.data(), vocabulary, 6, vocabulary, out.data()}, *stream);
  EXPECT_EQ(to_host(out, *stream), (std::vector<std::int32_t>{49151, 7, -1, -1, 0, 0}));
}

}  // namespace
}  // namespace thaw::ops::cuda
