#include <algorithm>
#include <cmath>

#include <gtest/gtest.h>

#include "engine/ops/cuda/elementwise.h"
#include "engine/ops/cuda/linear.h"
#include "tests/ops/cuda/cuda_ops_util.cuh"

namespace thaw::ops::cuda {
namespace {

constexpr int kCols = 128;
constexpr int kPositions = 3000;

// What linear() makes of heads is what rope_and_store() makes of its output, to the bit.
class CudaLinearHeadsTest : public CudaOpsTest {
 protected:
  void make(const AttentionShape& of, int rows, float bad_bias = 0.0F) {
    shape = of;
    num_rows = rows;
    width = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim;
    const auto plain =
        to_device(random_bf16(static_cast<std::size_t>(width) * kCols, 0.1F, 1), *stream);
    auto input = random_bf16(static_cast<std::size_t>(num_rows) * kCols, 1.0F, 2);
    if (bad_bias != 0.0F) input[11 * kCols + 3] = narrow(NAN);  // of a row nothing is finite
    const auto plain_x = to_device(input, *stream);
    weight = poisoned<Bf16>(weight_elements(width, kCols), *stream);
    x = poisoned<Bf16>(tiles_elements(num_rows, kCols), *stream);
    tile_weight({plain.data(), width, kCols, WeightRows::kPlain, 0, weight.data()}, *stream);
    tile_rows(plain_x.data(), num_rows, kCols, {x.data(), kCols}, *stream);
    std::vector<float> one_bias(width);
    for (int i = 0; i < width; ++i)
      one_bias[i] = 0.01F * static_cast<float>(i % 71) - 0.3F;
    one_bias[width - 3] += bad_bias;  // of the last head of v
    bias = to_device(one_bias, *stream);
    const RopeTables tables(kPositions, shape.head_dim);
    cos = to_device(tables.cos, *stream);
    sin = to_device(tables.sin, *stream);
    std::vector<std::int32_t> at(num_rows);
    std::vector<BlockId> where(num_rows);
    for (int r = 0; r < num_rows; ++r) {
      at[r] = (r + 100) % kPositions;
      where[r] = r == 7 ? -1 : at[r] / kBlockSize;
    }
    positions = to_device(at, *stream);
    blocks = to_device(where, *stream);
    bad_values = DeviceBuffer<std::uint8_t>(static_cast<std::size_t>(num_rows) * shape.num_kv_heads,
                                            *stream);
    check(cudaMemsetAsync(bad_values.data(), 0, bad_values.size(), stream->view().get()));
  }

  struct Out {
    std::vector<Bf16> q;
    std::vector<Bf16> pool;
  };

  LinearParams linear_params(Bf16* out) const {
    LinearParams p;
    p.weight = {weight.data(), width, kCols};
    p.x = {x.data(), kCols};
    p.num_rows = num_rows;
    p.out = out;
    p.out_stride = width;
    p.bias = bias.data();
    return p;
  }
  RopeAndStoreParams heads_of(Bf16* qkv) const {
    RopeAndStoreParams heads;
    heads.qkv = qkv;
    heads.stride = width;
    heads.num_rows = num_rows;
    heads.shape = shape;
    heads.positions = positions.data();
    heads.blocks = blocks.data();
    heads.cos = cos.data();
    heads.sin = sin.data();
    heads.kv = {nullptr, 2, shape.num_kv_heads, shape.head_dim};
    heads.layer = 1;
    heads.bad_values = bad_values.data();
    return heads;
  }

  Out run(bool half_split, bool turns, bool at_once) {
    const auto qkv = poisoned<Bf16>(static_cast<std::size_t>(num_rows) * width, *stream);
    LinearParams p = linear_params(qkv.data());
    RopeAndStoreParams heads = heads_of(qkv.data());
    const auto pool =
        poisoned<Bf16>(heads.kv.block_elements() * (kPositions / kBlockSize + 1), *stream);
    heads.kv.base = pool.data();
    heads.half_split = half_split;
    if (!turns) heads.cos = heads.sin = nullptr;
    if (at_once) p.heads = &heads;
    linear(*device, p, *stream);
    if (at_once)
      mark_bad_keys(*device, heads, *stream);
    else
      rope_and_store(*device, heads, *stream);
    const auto all = to_host(qkv, *stream);
    Out out;
    const int q = shape.num_heads * shape.head_dim;
    for (int r = 0; r < num_rows; ++r)
      out.q.insert(out.q.end(), all.begin() + static_cast<std::ptrdiff_t>(r) * width,
                   all.begin() + static_cast<std::ptrdiff_t>(r) * width + q);
    out.pool = to_host(pool, *stream);
    return out;
  }

  void expect_alike(bool half_split, bool turns) {
    const Out apart = run(half_split, turns, false);
    const Out at_once = run(half_split, turns, true);
    EXPECT_TRUE(same_bits<Bf16>(apart.q, at_once.q))
        << num_rows << " rows, head_dim " << shape.head_dim << ", half_split " << half_split;
    EXPECT_TRUE(same_bits<Bf16>(apart.pool, at_once.pool))
        << num_rows << " rows, head_dim " << shape.head_dim << ", half_split " << half_split;
  }

  AttentionShape shape;
  int num_rows = 0;
  int width = 0;
  DeviceBuffer<Bf16> weight, x;
  DeviceBuffer<float> bias, cos, sin;
  DeviceBuffer<std::int32_t> positions;
  DeviceBuffer<BlockId> blocks;
  DeviceBuffer<std::uint8_t> bad_values;
};

TEST_F(CudaLinearHeadsTest, StoresHeadsAsRopeAndStoreDoes) {
  // Kinds of heads that meet inside of a tile and on its edge; every tile that 132 multiprocessors
  // choose.
  for (const auto& [of, rows] :
       {std::pair(AttentionShape{9, 3, 64}, 256), std::pair(AttentionShape{32, 8, 64}, 1000),
        std::pair(AttentionShape{5, 1, 128}, 300), std::pair(AttentionShape{32, 8, 128}, 600),
        std::pair(AttentionShape{32, 8, 128}, 2001)}) {
    make(of, rows);
    for (const bool half_split : {true, false})
      expect_alike(half_split, true);
    expect_alike(true, false);
  }
}

TEST_F(CudaLinearHeadsTest, AValueThatIsNotFiniteBecomesANaNKey) {
  for (const AttentionShape& of : {AttentionShape{9, 3, 64}, AttentionShape{32, 8, 128}}) {
    make(of, 500, INFINITY);
    expect_alike(true, true);
    const auto flags = to_host(bad_values, *stream);
    EXPECT_EQ(std::ranges::count(flags, 0), std::ssize(flags)) << "flags are for one step";
  }
}

TEST_F(CudaLinearHeadsTest, RefusesWhatCannotBe) {
  make({5, 1, 128}, 300);
  const auto out = poisoned<Bf16>(static_cast<std::size_t>(num_rows) * width, *stream);
  const auto pool = poisoned<Bf16>(
      heads_of(nullptr).kv.block_elements() * (kPositions / kBlockSize + 1), *stream);
  RopeAndStoreParams heads = heads_of(out.data());
  heads.kv.base = pool.data();
  const RopeAndStoreParams right = heads;
  LinearParams p = linear_params(out.data());
  p.heads = &heads;
  p.num_rows = heads.num_rows = 255;
  EXPECT_THROW(linear(*device, p, *stream), Exception) << "few rows";
  p.num_rows = num_rows;
  EXPECT_THROW(linear(*device, p, *stream), Exception) << "heads of fewer rows";
  heads = right;
  p.kernel = LinearKernel::kStream;
  EXPECT_THROW(linear(*device, p, *stream), Exception) << "the streaming kernel stores none";
  p.kernel = LinearKernel::kAuto;
  heads.shape.num_heads = 4;
  EXPECT_THROW(linear(*device, p, *stream), Exception) << "a head too few";
  heads = right;
  heads.q_norm = bias.data();
  EXPECT_THROW(linear(*device, p, *stream), Exception) << "a norm of q";
  heads = right;
  heads.bad_values = nullptr;
  EXPECT_THROW(linear(*device, p, *stream), Exception) << "no room for flags";
  heads = right;
  linear(*device, p, *stream);
  stream->synchronize();
}

}  // namespace
}  // namespace thaw::ops::cuda
