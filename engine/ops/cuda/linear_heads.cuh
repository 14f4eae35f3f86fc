#pragma once

#include "engine/ops/cuda/elementwise.h"
#include "engine/ops/cuda/ptx.cuh"
#include "engine/ops/cuda/rope_math.cuh"

// What the tile kernel makes of heads of q, k and v: q and k are turned where they are computed,
// and k and v stored in the blocks of their positions, 128 bytes of 8 rows at a time. To the bit as
// rope_and_store() does it, which reads what was rounded to bf16.

namespace thaw::ops::cuda {

/// The heads of a tile of N outputs, of D dims each: a thread holds, of rows `token` and `token +
/// 8`, two neighbouring outputs of every 8, so that pairs are its own.
template <int N, int D>
struct TileHeads {
  static_assert(N % D == 0);
  static constexpr int kHeads = N / D;
  static constexpr int kGroups = D / 8;  // of 8 dims, of a head
  const RopeAndStoreParams& p;
  int token;
  int first_head;

  __device__ static int lane() { return static_cast<int>(threadIdx.x) % 4; }
  // Where in an accumulator the first of the thread's two values of a group is.
  __device__ static constexpr int at(int head, int group, int half) {
    return (head * kGroups + group) * 4 + half * 2;
  }

  __device__ static void turn_pair(float& first, float& second, float cos, float sin) {
    const std::uint32_t rounded = ptx::pack_bf16(first, second);
    first = low_bf16(rounded);
    second = high_bf16(rounded);
    rotate_pair(first, second, cos, sin);
  }

  // Some angles at a time, for all heads, their loads in flight together.
  __device__ void turn(int half, int position, float (&d)[N / 2]) const {
    const int turned = p.shape.num_heads + p.shape.num_kv_heads - first_head;
    if (p.cos == nullptr || turned <= 0) return;
    const std::int64_t angles = static_cast<std::int64_t>(position) * (D / 2);
    constexpr int kBatch = 4;
    if (p.half_split) {
      const auto* cosines = reinterpret_cast<const float2*>(p.cos + angles) + lane();
      const auto* sines = reinterpret_cast<const float2*>(p.sin + angles) + lane();
#pragma unroll
      for (int first = 0; first < kGroups / 2; first += kBatch) {
        float2 cos[kBatch];
        float2 sin[kBatch];
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
          cos[i] = cosines[(first + i) * 4];
          sin[i] = sines[(first + i) * 4];
        }
#pragma unroll
        for (int i = 0; i < kBatch; ++i)
#pragma unroll
          for (int head = 0; head < kHeads; ++head) {
            const int one = at(head, first + i, half);
            const int two = at(head, first + i + kGroups / 2, half);
            if (head >= turned) continue;
            turn_pair(d[one], d[two], cos[i].x, sin[i].x);
            turn_pair(d[one + 1], d[two + 1], cos[i].y, sin[i].y);
          }
      }
      return;
    }
#pragma unroll
    for (int first = 0; first < kGroups; first += kBatch) {
      float cos[kBatch];
      float sin[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        cos[i] = p.cos[angles + (first + i) * 4 + lane()];
        sin[i] = p.sin[angles + (first + i) * 4 + lane()];
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i)
#pragma unroll
        for (int head = 0; head < kHeads; ++head) {
          const int one = at(head, first + i, half);
          if (head < turned) turn_pair(d[one], d[one + 1], cos[i], sin[i]);
        }
    }
  }

  // Head `head` of the tile is one of k or v; `slot`: its row's place in the slab, or null.
  __device__ static void store(int head, int half, Bf16* slot, bool as_zeros,
                               const float (&d)[N / 2]) {
    if (slot == nullptr) return;
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      const int one = at(head, group, half);
      *reinterpret_cast<std::uint32_t*>(slot + group * 64 + lane() * 2) =
          as_zeros ? 0 : ptx::pack_bf16(d[one], d[one + 1]);
    }
  }

  // Of the row's whole head, by the four threads that hold it. By whole warps.
  __device__ static bool is_finite(int head, int half, const float (&d)[N / 2]) {
    bool finite = true;
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      const int one = at(head, group, half);
      finite = still_finite(finite, ptx::pack_bf16(d[one], d[one + 1]));
    }
    const unsigned all = __ballot_sync(0xffffffff, finite);
    return (all >> (threadIdx.x % 32 / 4 * 4) & 0xf) == 0xf;
  }

  __device__ void turn_and_store(float (&d)[N / 2]) const {
    const int kv_heads = p.shape.num_kv_heads;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = token + half * 8;
      const bool there = row < p.num_rows;
      const int position = there ? p.positions[row] : 0;
      turn(half, position, d);
      if (first_head + kHeads <= p.shape.num_heads) continue;
      const BlockId block = there ? p.blocks[row] : -1;
#pragma unroll
      for (int head = 0; head < kHeads; ++head) {
        const int of_kv = first_head + head - p.shape.num_heads;
        if (of_kv < 0 || of_kv >= 2 * kv_heads) continue;
        const bool is_value = of_kv >= kv_heads;
        const int kv_head = is_value ? of_kv - kv_heads : of_kv;
        Bf16* const slot = block < 0 ? nullptr
                                     : p.kv.slab(block, p.layer, is_value, kv_head) +
                                           p.kv.slab_index(position % kBlockSize, 0);
        const bool bad = is_value && !is_finite(head, half, d);
        store(head, half, slot, bad, d);
        if (bad && slot != nullptr && lane() == 0)
          p.bad_values[static_cast<std::int64_t>(row) * kv_heads + kv_head] = 1;
      }
    }
  }
};

}  // namespace thaw::ops::cuda
