#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include <gtest/gtest.h>

#include "engine/ops/cuda/attention.h"
#include "tests/ops/cuda/cuda_ops_util.cuh"

namespace thaw::ops::cuda {

inline constexpr int kLayers = 2;
inline constexpr int kLayer = 1;
inline constexpr std::size_t kPartials = 20000;

/// Keys and values of one sequence, [tokens][num_kv_heads][head_dim] each, and its queries,
/// [tokens][num_heads * head_dim].
struct Content {
  std::vector<Bf16> k;
  std::vector<Bf16> v;
  std::vector<Bf16> q;
};

/// Rows [first, first + count) of a content held in `table`.
struct Part {
  const Content* content;
  std::vector<BlockId> table;
  int first;
  int count;
};

class CudaAttentionTest : public CudaOpsTest {
 protected:
  // A pool of NaN: what is read without having been written shows.
  void make(AttentionShape shape_, int num_blocks_) {
    shape = shape_;
    num_blocks = num_blocks_;
    const DeviceKv kv = layout(nullptr);
    pool.assign(kv.block_elements() * num_blocks, narrow(NAN));
  }

  DeviceKv layout(Bf16* base) const { return {base, kLayers, shape.num_kv_heads, shape.head_dim}; }

  Content content(int tokens, unsigned seed) const {
    const std::size_t width = static_cast<std::size_t>(shape.num_kv_heads) * shape.head_dim;
    return {random_bf16(tokens * width, 1.0F, seed), random_bf16(tokens * width, 1.0F, seed + 1),
            random_bf16(static_cast<std::size_t>(tokens) * shape.num_heads * shape.head_dim, 0.7F,
                        seed + 2)};
  }

  // Writes tokens [0, tokens) into the blocks of `table`.
  void store(const Content& content, const std::vector<BlockId>& table, int tokens) {
    const DeviceKv kv = layout(pool.data());
    for (int t = 0; t < tokens; ++t)
      for (int h = 0; h < shape.num_kv_heads; ++h)
        for (int d = 0; d < shape.head_dim; ++d) {
          const std::size_t at =
              (static_cast<std::size_t>(t) * shape.num_kv_heads + h) * shape.head_dim + d;
          const int slot = kv.slab_index(t % kBlockSize, d);
          kv.slab(table[t / kBlockSize], kLayer, false, h)[slot] = content.k[at];
          kv.slab(table[t / kBlockSize], kLayer, true, h)[slot] = content.v[at];
        }
  }

  // Blocks first, first + step, ... for `tokens` tokens.
  static std::vector<BlockId> blocks(int first, int tokens, int step = 1) {
    std::vector<BlockId> table(ceil_div(tokens, kBlockSize));
    for (std::size_t i = 0; i < table.size(); ++i)
      table[i] = static_cast<BlockId>(first + static_cast<int>(i) * step);
    return table;
  }

  // One launch over all parts; returns the rows of each, [count][num_heads * head_dim].
  std::vector<std::vector<Bf16>> run(const std::vector<Part>& parts) {
    const int width = shape.num_heads * shape.head_dim;
    std::vector<Bf16> q;
    std::vector<AttentionSequence> sequences;
    for (const Part& part : parts) {
      sequences.push_back({part.table, static_cast<int>(q.size() / width), part.count, part.first});
      q.insert(q.end(), part.content->q.begin() + static_cast<std::size_t>(part.first) * width,
               part.content->q.begin() + static_cast<std::size_t>(part.first + part.count) * width);
    }
    const int rows = static_cast<int>(q.size() / width);
    std::vector<std::int32_t> words(1 << 20);
    words.resize(plan_attention(shape, sequences, kPartials, words).value());
    if (!device_pool || pool_changed) {
      device_pool = std::make_unique<DeviceBuffer<Bf16>>(to_device(pool, *stream));
      pool_changed = false;
    }
    const auto device_q = to_device(q, *stream);
    const auto plan = to_device(words, *stream);
    const auto workspace = poisoned<float>(attention_workspace_elements(shape, kPartials), *stream);
    const auto out = poisoned<Bf16>(tiles_elements(rows, width), *stream);
    AttentionParams params;
    params.kv = layout(device_pool->data());
    params.layer = kLayer;
    params.shape = shape;
    params.scale = 1.0F / std::sqrt(static_cast<float>(shape.head_dim));
    params.q = device_q.data();
    params.q_stride = width;
    params.plan = plan.data();
    params.workspace = workspace.data();
    params.max_partials = kPartials;
    params.width = header_of(words).width;
    params.out = {out.data(), width};
    attention(*device, params, *stream);
    const auto tiles = to_host(out, *stream);
    std::vector<std::vector<Bf16>> results;
    int row = 0;
    for (const Part& part : parts) {
      std::vector<Bf16> values;
      for (int t = 0; t < part.count; ++t, ++row)
        for (int c = 0; c < width; ++c)
          values.push_back(tiles[tiles_index(row, c, width)]);
      results.push_back(values);
    }
    return results;
  }

  std::span<const Bf16> row(const std::vector<Bf16>& rows, int index) const {
    const std::size_t width = static_cast<std::size_t>(shape.num_heads) * shape.head_dim;
    return {rows.data() + index * width, width};
  }

  // Attention of one row in double precision.
  std::vector<double> expected(const Content& content, int position) const {
    const int d_head = shape.head_dim;
    const int group = shape.num_heads / shape.num_kv_heads;
    std::vector<double> out;
    for (int h = 0; h < shape.num_heads; ++h) {
      std::vector<double> scores(position + 1, -INFINITY);
      const int first = shape.window > 0 ? std::max(0, position - shape.window + 1) : 0;
      for (int t = first; t <= position; ++t) {
        scores[t] = 0;
        for (int d = 0; d < d_head; ++d)
          scores[t] +=
              static_cast<double>(widen(
                  content.q[(static_cast<std::size_t>(position) * shape.num_heads + h) * d_head +
                            d])) *
              widen(content
                        .k[(static_cast<std::size_t>(t) * shape.num_kv_heads + h / group) * d_head +
                           d]);
        scores[t] /= std::sqrt(static_cast<double>(d_head));
      }
      const double max = *std::max_element(scores.begin(), scores.end());
      double sum = 0;
      for (double& score : scores)
        sum += score = std::exp(score - max);
      for (int d = 0; d < d_head; ++d) {
        double value = 0;
        for (int t = first; t <= position; ++t)
          value +=
              scores[t] *
              widen(content
                        .v[(static_cast<std::size_t>(t) * shape.num_kv_heads + h / group) * d_head +
                           d]);
        out.push_back(value / sum);
      }
    }
    return out;
  }

  void expect_near(std::span<const Bf16> got, const std::vector<double>& truth) const {
    double size = 0;
    for (const double value : truth)
      size += value * value;
    size = std::sqrt(size / truth.size());
    for (std::size_t i = 0; i < truth.size(); ++i)
      ASSERT_NEAR(widen(got[i]), truth[i], kAttentionTolerance * (size + std::abs(truth[i]))) << i;
  }

  AttentionShape shape;
  int num_blocks = 0;
  std::vector<Bf16> pool;
  bool pool_changed = true;
  std::unique_ptr<DeviceBuffer<Bf16>> device_pool;
};

inline const AttentionShape kShapes[] = {
    {32, 8, 128}, {9, 3, 64}, {4, 4, 128}, {16, 1, 64}, {7, 1, 128}};

}  // namespace thaw::ops::cuda
