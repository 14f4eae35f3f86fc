#include "engine/ops/cuda/attention_kernels.h"
#include "engine/ops/cuda/attention_math.cuh"
#include "engine/ops/cuda/launch.cuh"
#include "engine/ops/cuda/wgmma.cuh"

// Attention for chunks of prefill, on wgmma.
//
// A tile is 128 (token, head) rows of one KV head, 64 for each of two warpgroups; a third one's
// four warps are the producers of a ring of 128-key chunks, which both share. A warpgroup holds the
// scores of a whole split (64 x 256, 128 registers a thread), so that the maximum over the split
// comes first, as the rule wants; the weights become the register operand of the product with V,
// whose result is merged with that of the splits before. While one warpgroup computes exponentials
// the other keeps the tensor cores busy.

// Below sm_90 the kernel is empty, and what it uses is unused.
#pragma nv_diag_suppress 177

namespace thaw::ops::cuda {
namespace {

constexpr int kThreads = 384;
constexpr int kProducers = 4;  // warps
constexpr int kChunkKeys = 128;
constexpr int kChunkBlocks = kChunkKeys / kBlockSize;
constexpr int kChunkSteps = kChunkKeys / 16;

template <int D>
struct Layout {
  static constexpr int kChunkBytes = kChunkKeys * D * 2;
  static constexpr int kStages = 6;
  static constexpr int kQueryBytes = kTileRows * D * 2;
  static constexpr int kBytes = kStages * kChunkBytes + kQueryBytes;
  static constexpr int kRows8 = D * 16;  // bytes of 8 rows: the stride between groups of 8
};

// This thread's two rows of a warpgroup's 64: lane / 4 and 8 further.
struct Rows {
  int token[2];  // of the batch; -1 where there is none
  int head[2];
  int position[2];
  int first_key[2];
};

__device__ Rows rows_of(const AttentionKernelParams& p, const AttentionTile& tile, int kv_head,
                        int first_row) {
  Rows rows;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = first_row + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4 + half * 8;
    const int token = row / p.group;
    const bool there = token < tile.num_tokens;
    rows.token[half] = there ? tile.first_row + token : -1;
    rows.head[half] = kv_head * p.group + row % p.group;
    // A row that is not there sees every key; nobody sees its result.
    rows.position[half] = there ? tile.first_position + token : 1 << 30;
    rows.first_key[half] = first_key(tile.first_position + (there ? token : 0), p.window);
  }
  return rows;
}

// Copies the queries of 64 rows to shared memory in core matrices.
template <int D>
__device__ void load_queries(const AttentionKernelParams& p, const AttentionTile& tile, int kv_head,
                             int first_row, unsigned char* to) {
  for (int i = threadIdx.x % 128; i < 64 * D / 8; i += 128) {
    const int row = first_row + i / (D / 8);
    const int dim = i % (D / 8) * 8;
    const int token = row / p.group;
    uint4 value = {};
    if (token < tile.num_tokens)
      value = *reinterpret_cast<const uint4*>(p.q + (tile.first_row + token) * p.q_stride +
                                              (kv_head * p.group + row % p.group) * D + dim);
    const int local = i / (D / 8);
    *reinterpret_cast<uint4*>(to + local / 8 * Layout<D>::kRows8 + dim / 8 * 128 + local % 8 * 16) =
        value;
  }
}

// Keys of the chunk behind `keys` may be garbage, and 0 * NaN is NaN: their values become zeros.
template <int D>
__device__ void clear_values(unsigned char* chunk, int keys) {
  const int end = ceil_div(keys, 16) * 16;
  for (int i = threadIdx.x % 128; i < (end - keys) * (D / 8); i += 128) {
    const int key = keys + i / (D / 8);
    *reinterpret_cast<uint4*>(chunk + key / 8 * Layout<D>::kRows8 + i % (D / 8) * 128 +
                              key % 8 * 16) = {};
  }
}

template <int D>
__global__ void __launch_bounds__(kThreads, 1)
    prefill_kernel(const __grid_constant__ AttentionKernelParams p) {
#if THAW_HOPPER
  using L = Layout<D>;
  constexpr int kSteps = D / 16;
  extern __shared__ __align__(1024) unsigned char shared[];
  unsigned char* const ring = shared;
  unsigned char* const queries = shared + L::kStages * L::kChunkBytes;
  __shared__ __align__(8) std::uint64_t full[L::kStages];
  __shared__ __align__(8) std::uint64_t empty[L::kStages];
  if (threadIdx.x == 0) {
    for (int i = 0; i < L::kStages; ++i) {
      ptx::barrier_init(ptx::shared_address(&full[i]), kProducers);
      ptx::barrier_init(ptx::shared_address(&empty[i]), 2);
    }
    ptx::barrier_init_fence();
  }
  __syncthreads();
  ptx::let_next_kernel_start();
  ptx::wait_for_previous_kernel();
  const AttentionPlanHeader header = header_of(p);
  const auto* tiles = reinterpret_cast<const AttentionTile*>(p.plan + header.tiles_at);
  const int work = header.num_tiles * p.kv.num_kv_heads;
  int stage = 0;
  int phase = 0;
  const auto next_stage = [&] {
    if (++stage == L::kStages) {
      stage = 0;
      phase ^= 1;
    }
  };

  if (threadIdx.x < 128) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x % 32 == 0) {
      const int producer = threadIdx.x / 32;
      for (int w = blockIdx.x; w < work; w += gridDim.x) {
        const AttentionTile tile = tiles[w / p.kv.num_kv_heads];
        const std::int32_t* table = p.plan + tile.table_at;
        const int all_keys = tile.first_position + tile.num_tokens;
        for (int first = first_split(tile.first_position, p.window) * kSplitKeys; first < all_keys;
             first += kSplitKeys) {
          const int blocks = ceil_div(min(kSplitKeys, all_keys - first), kBlockSize);
          for (int value = 0; value < 2; ++value) {
            for (int at = 0; at < blocks; at += kChunkBlocks, next_stage()) {
              const int count = min(kChunkBlocks, blocks - at);
              const std::uint32_t bytes = kBlockSize * D * 2;
              ptx::barrier_wait(ptx::shared_address(&empty[stage]), phase ^ 1);
              ptx::barrier_expect(ptx::shared_address(&full[stage]),
                                  max(0, ceil_div(count - producer, kProducers)) * bytes);
              for (int b = producer; b < count; b += kProducers)
                ptx::bulk_copy(ptx::shared_address(ring) + stage * L::kChunkBytes + b * bytes,
                               p.kv.slab(table[first / kBlockSize + at + b], p.layer, value != 0,
                                         w % p.kv.num_kv_heads),
                               bytes, ptx::shared_address(&full[stage]));
            }
          }
        }
      }
    }
    return;
  }

  asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
  const int group = threadIdx.x / 128 - 1;
  const int lane = threadIdx.x % 32;
  const bool elected = threadIdx.x % 128 == 0;
  unsigned char* const own_queries = queries + group * 64 * D * 2;
  const auto release = [&](int s) {
    if (elected) ptx::barrier_arrive(ptx::shared_address(&empty[s]));
  };
  for (int w = blockIdx.x; w < work; w += gridDim.x) {
    const AttentionTile tile = tiles[w / p.kv.num_kv_heads];
    const int kv_head = w % p.kv.num_kv_heads;
    const int all_keys = tile.first_position + tile.num_tokens;
    ptx::named_barrier(1 + group, 128);  // the queries before are no longer read
    load_queries<D>(p, tile, kv_head, group * 64, own_queries);
    ptx::fence_shared_proxy();
    ptx::named_barrier(1 + group, 128);
    const Rows rows = rows_of(p, tile, kv_head, group * 64);
    const std::uint64_t q = wgmma::descriptor(ptx::shared_address(own_queries), 128, L::kRows8);
    float out[D / 2];
    float max[2];
    float sum[2];

    for (int first = first_split(tile.first_position, p.window) * kSplitKeys; first < all_keys;
         first += kSplitKeys) {
      const int num_keys = min(kSplitKeys, all_keys - first);
      // Scores of both chunks. Where the second does not exist, all its keys are masked.
      const int chunks = ceil_div(num_keys, kChunkKeys);
      float s[2][kChunkKeys / 2];
#pragma unroll
      for (int c = 0; c < 2; ++c)
#pragma unroll
        for (int i = 0; i < kChunkKeys / 2; ++i)
          s[c][i] = 0.0F;
      const int first_stage = stage;
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        if (c < chunks) {
          ptx::barrier_wait(ptx::shared_address(&full[stage]), phase);
          wgmma::fence();
          const std::uint64_t k =
              wgmma::descriptor(ptx::shared_address(ring) + stage * L::kChunkBytes, 128, L::kRows8);
#pragma unroll
          for (int step = 0; step < kSteps; ++step)
            wgmma::product(s[c], wgmma::advance(q, step * 256), wgmma::advance(k, step * 256));
          wgmma::commit();
          next_stage();
        }
      }
      wgmma::wait<0>();
      release(first_stage);
      if (chunks == 2) release(first_stage + 1 == L::kStages ? 0 : first_stage + 1);
      const int own_position = min(rows.position[0], rows.position[1]);
      if (first + kSplitKeys - 1 > own_position || num_keys < kSplitKeys ||
          first < ::max(rows.first_key[0], rows.first_key[1])) {
#pragma unroll
        for (int c = 0; c < 2; ++c)
#pragma unroll
          for (int i = 0; i < kChunkKeys / 2; ++i) {
            const int key = c * kChunkKeys + i / 4 * 8 + lane % 4 * 2 + i % 2;
            if (first + key > rows.position[i % 4 / 2] || key >= num_keys ||
                first + key < rows.first_key[i % 4 / 2])
              s[c][i] = -INFINITY;
          }
      }
      float new_max[2] = {-INFINITY, -INFINITY};
#pragma unroll
      for (int c = 0; c < 2; ++c)
#pragma unroll
        for (int i = 0; i < kChunkKeys / 2; ++i)
          new_max[i % 4 / 2] = fmaxf(new_max[i % 4 / 2], s[c][i]);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        new_max[half] = fmaxf(new_max[half], __shfl_xor_sync(0xffffffff, new_max[half], 1));
        new_max[half] = fmaxf(new_max[half], __shfl_xor_sync(0xffffffff, new_max[half], 2));
      }
      // Weights, in the order of the rule: a lane's keys of each quarter of 64, then the quarters.
      float new_sum[2] = {0.0F, 0.0F};
      std::uint32_t weights[2][kChunkSteps][4];
#pragma unroll
      for (int quarter = 0; quarter < 4; ++quarter) {
        const int c = quarter / 2;
        float part[2] = {0.0F, 0.0F};
#pragma unroll
        for (int j = 0; j < 8; ++j) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int i = (quarter % 2 * 8 + j) * 4 + half * 2;
            const float one = attention_weight(s[c][i], new_max[half], p.factor);
            const float two = attention_weight(s[c][i + 1], new_max[half], p.factor);
            part[half] = __fadd_rn(__fadd_rn(part[half], one), two);
            weights[c][quarter % 2 * 4 + j / 2][j % 2 * 2 + half] = ptx::pack_bf16(one, two);
          }
        }
        new_sum[0] = quarter == 0 ? part[0] : __fadd_rn(new_sum[0], part[0]);
        new_sum[1] = quarter == 0 ? part[1] : __fadd_rn(new_sum[1], part[1]);
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        new_sum[half] = __fadd_rn(new_sum[half], __shfl_xor_sync(0xffffffff, new_sum[half], 1));
        new_sum[half] = __fadd_rn(new_sum[half], __shfl_xor_sync(0xffffffff, new_sum[half], 2));
      }

      float values[D / 2];
#pragma unroll
      for (int i = 0; i < D / 2; ++i)
        values[i] = 0.0F;
      const int value_stage = stage;
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int left = num_keys - c * kChunkKeys;
        if (left >= kChunkKeys) {
          ptx::barrier_wait(ptx::shared_address(&full[stage]), phase);
          const std::uint64_t v =
              wgmma::descriptor(ptx::shared_address(ring) + stage * L::kChunkBytes, L::kRows8, 128);
          wgmma::fence();
#pragma unroll
          for (int step = 0; step < kChunkSteps; ++step)
            wgmma::product_transposed(values, weights[c][step],
                                      wgmma::advance(v, step * 2 * L::kRows8));
          wgmma::commit();
          next_stage();
        }
      }
      wgmma::wait<0>();
      // The last chunk of the tile: only the steps that have keys, garbage cleared.
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int left = num_keys - c * kChunkKeys;
        if (left > 0 && left < kChunkKeys) {
          ptx::barrier_wait(ptx::shared_address(&full[stage]), phase);
          unsigned char* const chunk = ring + stage * L::kChunkBytes;
          const std::uint64_t v = wgmma::descriptor(ptx::shared_address(chunk), L::kRows8, 128);
          clear_values<D>(chunk, left);
          ptx::fence_shared_proxy();
          ptx::named_barrier(1 + group, 128);
#pragma unroll
          for (int step = 0; step < kChunkSteps; ++step) {
            if (step * 16 < left) {
              wgmma::fence();
              wgmma::product_transposed(values, weights[c][step],
                                        wgmma::advance(v, step * 2 * L::kRows8));
              wgmma::commit();
              wgmma::wait<0>();
            }
          }
          next_stage();
        }
      }
      release(value_stage);
      if (chunks == 2) release(value_stage + 1 == L::kStages ? 0 : value_stage + 1);

#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int begin = rows.first_key[half] / kSplitKeys * kSplitKeys;
        if (first == begin) {
          max[half] = new_max[half];
          sum[half] = new_sum[half];
#pragma unroll
          for (int i = 0; i < D / 2; ++i)
            if (i % 4 / 2 == half) out[i] = values[i];
        } else if (first > begin && first <= rows.position[half]) {
          const float larger = fmaxf(max[half], new_max[half]);
          const float a = merge_weight(max[half], larger, p.factor);
          const float b = merge_weight(new_max[half], larger, p.factor);
#pragma unroll
          for (int i = 0; i < D / 2; ++i)
            if (i % 4 / 2 == half) out[i] = merge(out[i], a, values[i], b);
          sum[half] = merge(sum[half], a, new_sum[half], b);
          max[half] = larger;
        }
      }
    }

#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (rows.token[half] < 0) continue;
      const float scale = __frcp_rn(sum[half]);
#pragma unroll
      for (int g = 0; g < D / 8; ++g)
        *reinterpret_cast<std::uint32_t*>(
            p.out +
            tiles_index(rows.token[half], rows.head[half] * D + g * 8 + lane % 4 * 2, p.out_cols)) =
            ptx::pack_bf16(__fmul_rn(out[g * 4 + half * 2], scale),
                           __fmul_rn(out[g * 4 + half * 2 + 1], scale));
    }
  }
#endif
}

}  // namespace

void prepare_prefill_kernels() {
  for (const int head_dim : {64, 128})
    with_head_dim(head_dim, [&]<int D>() {
      prepare_kernel(&prefill_kernel<D>, Layout<D>::kBytes, "shared memory of the prefill kernel");
    });
}

void attention_tiles(const CudaDevice& device, const AttentionKernelParams& params,
                     thaw::cuda::StreamView stream) {
  with_head_dim(params.kv.head_dim, [&]<int D>() {
    launch_early(&prefill_kernel<D>, {device.multiprocessors(), kThreads, Layout<D>::kBytes},
                 stream.get(), "attention (prefill)", params);
  });
}

}  // namespace thaw::ops::cuda
