#include "engine/ops/cuda/attention_items.cuh"
#include "engine/ops/cuda/attention_kernels.h"
#include "engine/ops/cuda/launch.cuh"
#include "engine/ops/cuda/wgmma.cuh"

// Attention for few rows, on wgmma: attention_items.cuh says how items are dealt with.
//
// An item is up to 64 (token, head) rows of one KV head against 256 keys: one warpgroup, which
// holds the scores of the whole split as the prefill kernel does.

// Below sm_90 the kernel is empty, and what it uses is unused.
#pragma nv_diag_suppress 177

namespace thaw::ops::cuda {
namespace {

constexpr int kChunks = kSplitKeys / kChunkKeys;
constexpr int kChunkSteps = kChunkKeys / 16;
constexpr int kThreads = 128 + 32 * kProducers;
constexpr int kOwnBarrier = 1;  // of the warpgroup that computes

template <int D>
struct Ring : KeyRing<D, 6> {
  static constexpr int kQueryBytes = kWideItemRows * D * 2;
  static constexpr int kRows8 = D * 16;  // bytes of 8 rows: the stride between groups of 8
};

// Keys of the chunk behind `keys` may be garbage, and 0 * NaN is NaN: their values become zeros.
template <int D>
__device__ __forceinline__ void clear_values(unsigned char* chunk, int keys) {
  for (int i = threadIdx.x; i < (kChunkKeys - keys) * (D / 8); i += 128) {
    const int key = keys + i / (D / 8);
    *reinterpret_cast<uint4*>(chunk + key / 8 * Ring<D>::kRows8 + i % (D / 8) * 128 +
                              key % 8 * 16) = {};
  }
}

struct Weights {
  std::uint32_t of[4];
};

template <int D>
__global__ void __launch_bounds__(kThreads, kBlocksEach)
    wide_kernel(const __grid_constant__ AttentionKernelParams p) {
#if THAW_HOPPER
  using R = Ring<D>;
  constexpr int kSteps = D / 16;  // of k16 over dims
  extern __shared__ __align__(1024) unsigned char shared[];
  unsigned char* const ring = shared;
  unsigned char* const queries = shared + R::kBytes;
  __shared__ __align__(8) std::uint64_t full[R::kStages];
  __shared__ __align__(8) std::uint64_t empty[R::kStages];
  ptx::let_next_kernel_start();
  const AttentionItem* items = nullptr;
  const int work = items_of(p, ItemWidth::kWide, items);
  if (static_cast<int>(blockIdx.x) >= max(work, 1)) return;
  if (threadIdx.x == 0) {
    for (int i = 0; i < R::kStages; ++i) {
      ptx::barrier_init(ptx::shared_address(&full[i]), kProducers);
      ptx::barrier_init(ptx::shared_address(&empty[i]), 1);
    }
    ptx::barrier_init_fence();
  }
  __syncthreads();
  const int lane = threadIdx.x % 32;
  if (threadIdx.x >= 128) {
    if (lane == 0)
      bring_items<D, R>(p, items, work, ring, full, empty, static_cast<int>(threadIdx.x) / 32 - 4);
    return;
  }

  RingPlace place;
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = __shfl_sync(0xffffffff, thread / 32, 0);
  const auto release = [&](int s) {
    if (thread == 0) ptx::barrier_arrive(ptx::shared_address(&empty[s]));
  };
  const auto sync_own = [&] { ptx::named_barrier(kOwnBarrier, 128); };
  const std::uint32_t own_queries = ptx::shared_address(queries);
  const std::uint64_t q = wgmma::descriptor(own_queries, 128, R::kRows8);
  bool waited = false;
  bool merges = false;
  for (int w = blockIdx.x; w < work; w += gridDim.x) {
    const AttentionItem item = items[w / p.kv.num_kv_heads];
    merges = merges || item.merged != 0;
    const auto* entries = reinterpret_cast<const AttentionEntry*>(p.plan + item.entries_at);
    const int kv_head = w % p.kv.num_kv_heads;
    const int rows = item.num_entries * p.group;
    const int chunks = ceil_div(item.num_keys, kChunkKeys);
    // This lane's two rows.
    AttentionEntry entry[2];
    const int first_row = warp * 16 + lane / 4;
    const auto head = [&](int half) {
      return kv_head * p.group + (first_row + half * 8) % p.group;
    };
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first_row + half * 8;
      entry[half] = row < rows ? entries[row / p.group] : AttentionEntry{-1, 0, 0, 0};
    }
    // Where the queries are that this thread brings, 16 bytes of each: known before they are there.
    constexpr int kAtOnce = 128 * 8 / D;  // rows
    const int dim = thread % (D / 8) * 8;
    std::int64_t from[kWideItemRows / kAtOnce];
#pragma unroll
    for (int i = 0; i < kWideItemRows / kAtOnce; ++i) {
      const int row = i * kAtOnce + thread / (D / 8);
      from[i] = row < rows ? entries[row / p.group].row * p.q_stride +
                                 (kv_head * p.group + row % p.group) * D + dim
                           : -1;
    }
    if (!waited)
      ptx::wait_for_previous_kernel();
    else
      sync_own();  // the item before is done with its queries
    waited = true;
    // In core matrices; rows that are none stay what they are.
#pragma unroll
    for (int i = 0; i < kWideItemRows / kAtOnce; ++i) {
      const int row = i * kAtOnce + thread / (D / 8);
      if (from[i] >= 0)
        ptx::copy_or_zero(own_queries + row / 8 * R::kRows8 + dim / 8 * 128 + row % 8 * 16,
                          p.q + from[i], true);
    }
    ptx::wait_for_copies();
    ptx::fence_shared_proxy();
    sync_own();

    float s[kChunks][kChunkKeys / 2];
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      if (c < chunks) {
        const std::uint64_t k = wgmma::descriptor(
            ptx::shared_address(ring) + place.stage * R::kChunkBytes, 128, R::kRows8);
        ptx::barrier_wait(ptx::shared_address(&full[place.stage]), place.phase);
        wgmma::fence();
        wgmma::product<true>(s[c], q, k);
#pragma unroll
        for (int step = 1; step < kSteps; ++step)
          wgmma::product(s[c], wgmma::advance(q, step * 256), wgmma::advance(k, step * 256));
        wgmma::commit();
        wgmma::wait<0>();
        release(place.stage);
        place.advance(R::kStages);
      } else {
#pragma unroll
        for (int i = 0; i < kChunkKeys / 2; ++i)
          s[c][i] = 0.0F;
      }
    }
    float largest[2] = {};
    float sum[2] = {};
    // By key pairs: of steps of 16 keys, what the register operand of a row wants.
    std::uint32_t weights[2][kSplitKeys / 8];
    const auto weigh = [&]<int half>() {
      const auto score = [&](int i) -> float& {  // of the row's keys that the lane has
        const int at = i / 2 * 4 + i % 2 + half * 2;
        return s[at / (kChunkKeys / 2)][at % (kChunkKeys / 2)];
      };
      const int own = lane % 4 * 2;  // the lane's first key of each 8
      const bool there = entry[half].row >= 0;
      const int base = item.split * kSplitKeys;
      const int begin = (there ? first_key(entry[half].position, p.window) - base : 0) - own;
      const int last =
          (there ? min(item.num_keys - 1, entry[half].position - base) : item.num_keys - 1) - own;
      if (__any_sync(0xffffffff, last < kSplitKeys - 1 - own || begin > -own)) {
#pragma unroll
        for (int i = 0; i < kSplitKeys / 4; ++i)
          if (i / 2 * 8 + i % 2 > last || i / 2 * 8 + i % 2 < begin) score(i) = -INFINITY;
      }
      float best[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};  // short chains
#pragma unroll
      for (int i = 0; i < kSplitKeys / 4; ++i)
        best[i % 4] = fmaxf(best[i % 4], score(i));
      float most = fmaxf(fmaxf(best[0], best[1]), fmaxf(best[2], best[3]));
      most = fmaxf(most, __shfl_xor_sync(0xffffffff, most, 1));
      most = fmaxf(most, __shfl_xor_sync(0xffffffff, most, 2));
      largest[half] = most;
      const float off = attention_base(most, p.factor);
      // Weights; their sums in the order of the rule: a lane's keys of each quarter of 64, then the
      // quarters.
      float total = 0.0F;
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        float part = 0.0F;
        const bool any = c < chunks && warp * 16 + half * 8 < rows;  // the same in all of the warp
#pragma unroll
        for (int i = c * 8; i < c * 8 + 8; ++i) {
          const float one = attention_weight_if(any, score(2 * i), off, p.factor);
          const float two = attention_weight_if(any, score(2 * i + 1), off, p.factor);
          part = __fadd_rn(__fadd_rn(part, one), two);
          weights[half][i] = ptx::pack_bf16(one, two);
        }
        total = c == 0 ? part : __fadd_rn(total, part);
      }
      total = __fadd_rn(total, __shfl_xor_sync(0xffffffff, total, 1));
      sum[half] = __fadd_rn(total, __shfl_xor_sync(0xffffffff, total, 2));
    };
    weigh.template operator()<0>();
    weigh.template operator()<1>();
    const auto weights_of = [&](int step) {
      return Weights{{weights[0][step * 2], weights[1][step * 2], weights[0][step * 2 + 1],
                      weights[1][step * 2 + 1]}};
    };
    float o[D / 2];
    const auto values_at = [&] {
      return wgmma::descriptor(ptx::shared_address(ring) + place.stage * R::kChunkBytes, R::kRows8,
                               128);
    };
    if (item.num_keys == kSplitKeys) {
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        const std::uint64_t v = values_at();
        ptx::barrier_wait(ptx::shared_address(&full[place.stage]), place.phase);
        wgmma::fence();
        if (c == 0)
          wgmma::product_transposed<true>(o, weights_of(c * kChunkSteps).of, v);
        else
          wgmma::product_transposed(o, weights_of(c * kChunkSteps).of, v);
#pragma unroll
        for (int step = 1; step < kChunkSteps; ++step)
          wgmma::product_transposed(o, weights_of(c * kChunkSteps + step).of,
                                    wgmma::advance(v, step * 2 * R::kRows8));
        wgmma::commit();
        wgmma::wait<0>();
        release(place.stage);
        place.advance(R::kStages);
      }
    } else {
#pragma unroll
      for (int i = 0; i < D / 2; ++i)
        o[i] = 0.0F;
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        const int left = item.num_keys - c * kChunkKeys;
        if (left > 0) {
          const std::uint64_t v = values_at();
          ptx::barrier_wait(ptx::shared_address(&full[place.stage]), place.phase);
          if (left < kChunkKeys) clear_values<D>(ring + place.stage * R::kChunkBytes, left);
          ptx::fence_shared_proxy();
          sync_own();
          wgmma::fence();
#pragma unroll
          for (int step = 0; step < kChunkSteps; ++step)
            wgmma::product_transposed(o, weights_of(c * kChunkSteps + step).of,
                                      wgmma::advance(v, step * 2 * R::kRows8));
          wgmma::commit();
          wgmma::wait<0>();
          release(place.stage);
          place.advance(R::kStages);
        }
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (entry[half].row < 0) continue;
      const int dim = lane % 4 * 2;
      if (num_splits(entry[half].position, p.window) == 1) {
        const float scale = __frcp_rn(sum[half]);
#pragma unroll
        for (int g = 0; g < D / 8; ++g)
          *reinterpret_cast<std::uint32_t*>(
              p.out + tiles_index(entry[half].row, head(half) * D + dim + g * 8, p.out_cols)) =
              ptx::pack_bf16(__fmul_rn(o[g * 4 + half * 2], scale),
                             __fmul_rn(o[g * 4 + half * 2 + 1], scale));
        continue;
      }
      const std::size_t at =
          static_cast<std::size_t>(entry[half].partial) * p.num_heads + head(half);
#pragma unroll
      for (int g = 0; g < D / 8; ++g)
        *reinterpret_cast<float2*>(p.partial_out + at * D + dim + g * 8) = {
            o[g * 4 + half * 2], o[g * 4 + half * 2 + 1]};
      if (lane % 4 == 0)
        *reinterpret_cast<float2*>(p.partial_stats + at * 2) = {largest[half], sum[half]};
    }
    if (item.num_entries == 1 && num_splits(entries[0].position, p.window) == 1) continue;
    // This item's results are there for everybody before the counters say so.
    __threadfence();
    sync_own();
    count_splits(p, item, kv_head, thread);
  }
  if (!waited) ptx::wait_for_previous_kernel();
  if (merges) merge_items<D>(p, items, work, warp, kWideItemWarps);
#endif
}

template <int D>
constexpr int kSharedBytes = Ring<D>::kBytes + Ring<D>::kQueryBytes;

}  // namespace

void prepare_wide_kernels() {
  for (const int head_dim : {64, 128})
    with_head_dim(head_dim, [&]<int D>() {
      prepare_item_kernel(&wide_kernel<D>, kThreads, kSharedBytes<D>);
    });
}

void attention_wide_splits(const CudaDevice& device, const AttentionKernelParams& params,
                           thaw::cuda::StreamView stream) {
  with_head_dim(params.kv.head_dim, [&]<int D>() {
    launch_early(&wide_kernel<D>,
                 {kBlocksEach * device.multiprocessors(), kThreads, kSharedBytes<D>}, stream.get(),
                 "attention (wide splits)", params);
  });
}

}  // namespace thaw::ops::cuda
