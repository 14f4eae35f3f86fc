#pragma once

#include <string>

#include "engine/base/error.h"
#include "engine/ops/cuda/attention_math.cuh"
#include "engine/ops/cuda/launch.cuh"
#include "engine/ops/cuda/ptx.cuh"

// What both kernels of few rows do alike: every split of every sequence is an item of its own, so
// that a long context fills the device, and rows whose split lies in the same blocks are one
// item's. Producers keep a ring of 64-key chunks full, across items: while one item is computed the
// next one's keys are on their way. Keys that no row of the batch writes are read before the
// kernels ahead are done, and so is the plan. A row's splits are merged in order, by the item that
// the plan names: when a block has computed all of its items, it waits until a counter says that
// all splits of a row are there. As many blocks are launched as run at a time, and none waits
// before its own work is done. Two blocks share a multiprocessor: what one waits for, the other
// fills.

namespace thaw::ops::cuda {

inline constexpr int kChunkKeys = 64;
inline constexpr int kChunkBlocks = kChunkKeys / kBlockSize;
inline constexpr int kProducers = 2;  ///< warps, each with its share of a chunk's blocks
inline constexpr int kBlocksEach = 2;  ///< of a multiprocessor

/// Bytes16K: of the ring, in stages of 64 keys of 128 dims.
template <int D, int Bytes16K>
struct KeyRing {
  static constexpr int kChunkBytes = kChunkKeys * D * 2;
  static constexpr int kStages = Bytes16K * 16384 / kChunkBytes;
  // Chunks on their way at a time: more only make a queue, in which what the small reads of this
  // kernel and of those ahead ask for waits too.
  static constexpr int kWindow = 32768 / kChunkBytes;
  static constexpr int kBytes = kStages * kChunkBytes;
};

/// The place in a ring of `stages`.
struct RingPlace {
  int stage = 0;
  int phase = 0;

  __device__ __forceinline__ void advance(int stages) {
    if (++stage == stages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

/// The work of producer `own`, by one lane: keys, then values, of all items of the block.
template <int D, typename R>
__device__ __forceinline__ void bring_items(const AttentionKernelParams& p,
                                            const AttentionItem* items, int work,
                                            unsigned char* ring, std::uint64_t* full,
                                            std::uint64_t* empty, int own) {
  constexpr int kBlockBytes = kBlockSize * D * 2;
  RingPlace at;
  RingPlace landed;  // the chunk that must be there before the next one is asked for
  bool waited = false;
  int asked = 0;
  for (int w = blockIdx.x; w < work; w += gridDim.x) {
    const AttentionItem item = items[w / p.kv.num_kv_heads];
    const std::int32_t* table = p.plan + item.table_at;
    const int blocks = ceil_div(item.num_keys, kBlockSize);
    for (int value = 0; value < 2; ++value) {
      for (int first = 0; first < blocks; first += kChunkBlocks, at.advance(R::kStages)) {
        const int count = min(kChunkBlocks, blocks - first);
        const std::uint32_t barrier = ptx::shared_address(&full[at.stage]);
        ptx::barrier_wait(ptx::shared_address(&empty[at.stage]), at.phase ^ 1);
        if (++asked > R::kWindow) {
          ptx::barrier_wait(ptx::shared_address(&full[landed.stage]), landed.phase);
          landed.advance(R::kStages);
        }
        ptx::barrier_expect(barrier, ceil_div(count - own, kProducers) * kBlockBytes);
        if (!waited && first + count > item.settled_blocks) {
          ptx::wait_for_previous_kernel();
          waited = true;
        }
        for (int b = own; b < count; b += kProducers)
          ptx::bulk_copy(ptx::shared_address(ring) + at.stage * R::kChunkBytes + b * kBlockBytes,
                         p.kv.slab(table[first + b], p.layer, value != 0, w % p.kv.num_kv_heads),
                         kBlockBytes, barrier);
      }
    }
  }
}

/// Says that the item's results of its rows' splits are there; `thread` counts the block's that
/// compute, all of which have passed a barrier behind a __threadfence().
__device__ __forceinline__ void count_splits(const AttentionKernelParams& p,
                                             const AttentionItem& item, int kv_head, int thread) {
  if (thread >= item.num_entries) return;
  const auto* entries = reinterpret_cast<const AttentionEntry*>(p.plan + item.entries_at);
  if (num_splits(entries[thread].position, p.window) > 1)
    atomicAdd(p.counters + entries[thread].counters_at + kv_head, 1);
}

/// A row's splits in the workspace, and its counter for one KV head: of splits done, and by kMerged
/// of heads merged.
struct Merge {
  int row;
  int partial;
  int splits;
  std::int32_t* counter;
};
inline constexpr std::int32_t kMerged = 1 << 16;
inline constexpr int kMostPolls =
    1 << 24;  // seconds: something is broken, and a failed launch says so

/// One warp a (row, head): its splits in ascending order. The other blocks' results are read past
/// the first-level cache, which does not follow their writes.
template <int D>
__device__ __forceinline__ void merge_splits(const AttentionKernelParams& p, const Merge& row,
                                             int head) {
  if (threadIdx.x % 32 == 0)
    for (int polls = 0; ptx::load_acquire(row.counter) % kMerged != row.splits; ++polls)
      if (polls == kMostPolls) __trap();
  __syncwarp();
  constexpr int kDims = D / 32;  // a lane
  constexpr int kBatch = 8;  // loads in flight
  const int lane = threadIdx.x % 32;
  float max = 0.0F;
  float sum = 0.0F;
  float out[kDims] = {};
  for (int first = 0; first < row.splits; first += kBatch) {
    float2 stats[kBatch];
    float2 values[kBatch][kDims / 2];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const std::size_t at =
          static_cast<std::size_t>(row.partial + min(first + i, row.splits - 1)) * p.num_heads +
          head;
      stats[i] = __ldcg(reinterpret_cast<const float2*>(p.partial_stats + at * 2));
#pragma unroll
      for (int k = 0; k < kDims / 2; ++k)
        values[i][k] =
            __ldcg(reinterpret_cast<const float2*>(p.partial_out + at * D + lane * kDims) + k);
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (first + i >= row.splits) break;
      const float own[4] = {values[i][0].x, values[i][0].y, values[i][kDims / 2 - 1].x,
                            values[i][kDims / 2 - 1].y};
      if (first + i == 0) {
        max = stats[i].x;
        sum = stats[i].y;
#pragma unroll
        for (int k = 0; k < kDims; ++k)
          out[k] = own[k];
        continue;
      }
      const float larger = fmaxf(max, stats[i].x);
      const float a = merge_weight(max, larger, p.factor);
      const float b = merge_weight(stats[i].x, larger, p.factor);
#pragma unroll
      for (int k = 0; k < kDims; ++k)
        out[k] = merge(out[k], a, own[k], b);
      sum = merge(sum, a, stats[i].y, b);
      max = larger;
    }
  }
  const float scale = __frcp_rn(sum);
  Bf16* to = p.out + tiles_index(row.row, head * D + lane * kDims, p.out_cols);
#pragma unroll
  for (int k = 0; k < kDims; k += 2)
    *reinterpret_cast<std::uint32_t*>(to + k) =
        ptx::pack_bf16(__fmul_rn(out[k], scale), __fmul_rn(out[k + 1], scale));
  // The last head leaves the counter as it was, for the next layer.
  if (lane == 0 && atomicAdd(row.counter, kMerged) / kMerged == p.group - 1) *row.counter = 0;
}

/// Merges what the plan gives to the block's items: a head of a row for each of `warps` at a time.
template <int D>
__device__ __forceinline__ void merge_items(const AttentionKernelParams& p,
                                            const AttentionItem* items, int work, int warp,
                                            int warps) {
  int turn = 0;
  for (int w = blockIdx.x; w < work; w += gridDim.x) {
    const AttentionItem item = items[w / p.kv.num_kv_heads];
    const int kv_head = w % p.kv.num_kv_heads;
    const auto* entries = reinterpret_cast<const AttentionEntry*>(p.plan + item.entries_at);
    for (unsigned long long left = item.merged; left != 0; left &= left - 1) {
      const AttentionEntry entry = entries[__ffsll(static_cast<long long>(left)) - 1];
      const Merge row{entry.row, entry.partial - item.split + first_split(entry.position, p.window),
                      num_splits(entry.position, p.window),
                      p.counters + entry.counters_at + kv_head};
      for (int head = 0; head < p.group; ++head, turn = (turn + 1) % warps)
        if (turn == warp) merge_splits<D>(p, row, kv_head * p.group + head);
    }
  }
}

/// The plan's items; returns how many there are for all KV heads. Blocks for which none is left
/// make room for the next kernel's, but for the first one, which stays to wait, so that the kernel
/// ends after those ahead of it.
__device__ __forceinline__ int items_of(const AttentionKernelParams& p, ItemWidth width,
                                        const AttentionItem*& items) {
  const AttentionPlanHeader header = header_of(p);
  if (header.num_items > 0 && header.width != width) __trap();  // for the other kernel
  items = reinterpret_cast<const AttentionItem*>(p.plan + header.items_at);
  return header.num_items * p.kv.num_kv_heads;
}

/// Allows the kernel its shared memory. Throws `kUnsupported` where a multiprocessor does not hold
/// kBlocksEach blocks: they wait for one another, so all of them must run at a time.
template <typename K>
void prepare_item_kernel(K* kernel, int threads, int shared_bytes) {
  prepare_kernel(kernel, static_cast<std::size_t>(shared_bytes), "shared memory of attention");
  int blocks = 0;
  thaw::cuda::check(
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared_bytes),
      "occupancy of attention");
  if (blocks < kBlocksEach)
    throw Exception(make_error(Errc::kUnsupported, "attention: a multiprocessor holds " +
                                                       std::to_string(blocks) +
                                                       " blocks of a kernel; it must hold " +
                                                       std::to_string(kBlocksEach)));
}

}  // namespace thaw::ops::cuda
