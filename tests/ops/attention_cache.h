#pragma once

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include "engine/ops/attention.h"
#include "tests/ops/ops_test_util.h"

namespace thaw::ops::testing {

inline constexpr int kLayers = 2;
inline constexpr int kLayer = 1;
inline constexpr int kNumBlocks = 160;

struct Shape {
  int num_heads = 6;
  int num_kv_heads = 2;
  int head_dim = 32;
  KvDType dtype = KvDType::kBF16;
  int window = 0;
};

/// q, k and v of one sequence's positions.
struct Tokens {
  std::vector<float> q, k, v;
};

inline Tokens make_tokens(const Shape& shape, int count, std::uint32_t seed) {
  const auto n = static_cast<std::size_t>(count);
  return {random_floats(n * shape.num_heads * shape.head_dim, seed, 1.5F),
          random_floats(n * shape.num_kv_heads * shape.head_dim, seed + 1, 1.5F),
          random_floats(n * shape.num_kv_heads * shape.head_dim, seed + 2)};
}

/// KV memory full of NaN, so that any read of an unwritten slot shows.
class Cache {
 public:
  explicit Cache(const Shape& shape) : shape_(shape) {
    kv_.dtype = shape.dtype;
    kv_.num_layers = kLayers;
    kv_.num_kv_heads = shape.num_kv_heads;
    kv_.head_dim = shape.head_dim;
    memory_.assign(kv_.block_bytes() * kNumBlocks, std::byte{0xff});
    kv_.base = memory_.data();
  }
  const PagedKv& kv() const { return kv_; }

  /// Stores and attends rows first .. first + count - 1 of `tokens`.
  std::vector<float> run(Device& device, const Tokens& tokens, std::span<const BlockId> table,
                         int first, int count) {
    const AttentionSequence sequence{table, 0, count, first};
    store(device, tokens, sequence);
    return attend(device, {&sequence, 1}, q_rows(tokens, first, count));
  }
  void store(Device& device, const Tokens& tokens, const AttentionSequence& sequence) {
    const auto width = static_cast<std::size_t>(shape_.num_kv_heads * shape_.head_dim);
    const auto at = static_cast<std::size_t>(sequence.first_position) * width;
    store_kv(device, kv_, kLayer, {&sequence, 1}, tokens.k.data() + at, tokens.v.data() + at);
  }
  std::vector<float> q_rows(const Tokens& tokens, int first, int count) const {
    const int width = shape_.num_heads * shape_.head_dim;
    return {tokens.q.begin() + first * width, tokens.q.begin() + (first + count) * width};
  }
  std::vector<float> attend(Device& device, std::span<const AttentionSequence> sequences,
                            const std::vector<float>& q) {
    AttentionArgs args;
    args.kv = kv_;
    args.layer = kLayer;
    args.num_heads = shape_.num_heads;
    args.window = shape_.window;
    args.scale = 1.0F / std::sqrt(static_cast<float>(shape_.head_dim));
    args.sequences = sequences;
    args.q = q.data();
    std::vector<float> out(q.size(), -9.0F);
    args.out = out.data();
    attention(device, args);
    return out;
  }

 private:
  Shape shape_;
  PagedKv kv_;
  std::vector<std::byte> memory_;
};

/// Blocks from `first` on in steps of 7, so that neighbours in a table are not neighbours in
/// memory.
inline std::vector<BlockId> scattered_table(int blocks, int first = 0) {
  std::vector<BlockId> table(static_cast<std::size_t>(blocks));
  for (int i = 0; i < blocks; ++i)
    table[static_cast<std::size_t>(i)] = (first + i * 7) % kNumBlocks;
  return table;
}

}  // namespace thaw::ops::testing
