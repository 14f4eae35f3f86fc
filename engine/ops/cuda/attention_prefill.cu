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
constexpr int kOwnBarrier = 1;  // and 2: of one warpgroup

template <int D>
struct Layout {
  static constexpr int kChunkBytes = kChunkKeys * D * 2;
  static constexpr int kStages = 6;
  static constexpr int kQueryBytes = kTileRows * D * 2;
  static constexpr int kBytes = kStages * kChunkBytes + kQueryBytes;
  static constexpr int kRows8 = D * 16;  // bytes of 8 rows: the stride between groups of 8
};

// The work of a block, round by round. Tiles come with the most keys first; every other round runs
// backwards, so that nobody has the longest of all rounds.
struct Work {
  int count;

  __device__ bool has_round(int round) const { return round * static_cast<int>(gridDim.x) < count; }
  // -1: there is nothing for this block.
  __device__ int at(int round) const {
    const auto blocks = static_cast<int>(gridDim.x);
    const auto block = static_cast<int>(blockIdx.x);
    const int index = round * blocks + (round % 2 == 0 ? block : blocks - 1 - block);
    return index < count ? index : -1;
  }
};

// Rows of a tile are heads of one token after another. Dividing by their number, which the compiler
// does not know, by a multiplication: exact for rows below 128 and at most 16 heads.
struct Group {
  int heads;
  int inverse;

  __device__ explicit Group(int group) : heads(group), inverse(65536 / group + 1) {}
  __device__ int token(int row) const { return row * inverse >> 16; }
  __device__ int head(int row) const { return row - token(row) * heads; }
};

// A thread's row of a warpgroup's 64: lane / 4 of its warp's 16, and 8 further.
__device__ __forceinline__ int row_of(int first_row, int half) {
  return first_row + static_cast<int>(threadIdx.x) % 128 / 32 * 16 +
         static_cast<int>(threadIdx.x) % 32 / 4 + half * 8;
}

// What this thread's two rows see.
struct Rows {
  int position[2];
  int first_key[2];

  __device__ Rows(const AttentionKernelParams& p, const Group& g, const AttentionTile& tile,
                  int first_row) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int token = g.token(row_of(first_row, half));
      const bool there = token < tile.num_tokens;
      // A row that is not there sees every key; nobody sees its result.
      position[half] = there ? tile.first_position + token : 1 << 30;
      first_key[half] = ops::cuda::first_key(tile.first_position + (there ? token : 0), p.window);
    }
  }
};

// Begins to copy the queries of 64 rows to shared memory, in core matrices.
template <int D>
__device__ __forceinline__ void load_queries(const AttentionKernelParams& p, const Group& g,
                                             const AttentionTile& tile, int kv_head, int first_row,
                                             std::uint32_t to) {
  constexpr int kRows = 128 * 8 / D;  // at a time; 16 bytes a thread
  const int thread = static_cast<int>(threadIdx.x) % 128;
  const int dim = thread % (D / 8) * 8;
  const Bf16* const from = p.q + tile.first_row * p.q_stride + kv_head * g.heads * D + dim;
#pragma unroll 1
  for (int local = thread / (D / 8); local < 64; local += kRows) {
    const int token = g.token(first_row + local);
    const bool there = token < tile.num_tokens;
    ptx::copy_or_zero(to + local / 8 * Layout<D>::kRows8 + dim / 8 * 128 + local % 8 * 16,
                      from + (there ? token * p.q_stride + g.head(first_row + local) * D : 0),
                      there);
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

// Keys behind a row's position or its split's last key, and those before its window, count as
// -infinity.
__device__ __forceinline__ void mask_scores(const Rows& rows, int first, int num_keys,
                                            float (&s)[2][kChunkKeys / 2]) {
  const int own = static_cast<int>(threadIdx.x) % 4 * 2;  // the lane's first key of each 8
  if (first + kSplitKeys - 1 > min(rows.position[0], rows.position[1]) || num_keys < kSplitKeys) {
    const int last[2] = {min(rows.position[0] - first, num_keys - 1) - own,
                         min(rows.position[1] - first, num_keys - 1) - own};
#pragma unroll
    for (int i = 0; i < kChunkKeys; ++i)
      if (i / 4 * 8 + i % 2 > last[i % 4 / 2])
        s[i / (kChunkKeys / 2)][i % (kChunkKeys / 2)] = -INFINITY;
  }
  if (first < max(rows.first_key[0], rows.first_key[1])) {
    const int begin[2] = {rows.first_key[0] - first - own, rows.first_key[1] - first - own};
#pragma unroll
    for (int i = 0; i < kChunkKeys; ++i)
      if (i / 4 * 8 + i % 2 < begin[i % 4 / 2])
        s[i / (kChunkKeys / 2)][i % (kChunkKeys / 2)] = -INFINITY;
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
  const Work work{header.num_tiles * p.kv.num_kv_heads};
  int stage = 0;
  int phase = 0;
  const auto next_stage = [&] {
    if (++stage == L::kStages) {
      stage = 0;
      phase ^= 1;
    }
  };

  if (threadIdx.x < 128) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (threadIdx.x % 32 == 0) {
      const int producer = threadIdx.x / 32;
      for (int round = 0; work.has_round(round); ++round) {
        const int w = work.at(round);
        if (w < 0) break;
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

  asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
  const int group = threadIdx.x / 128 - 1;
  const int lane = threadIdx.x % 32;
  const bool elected = threadIdx.x % 128 == 0;
  const std::uint32_t own_queries = ptx::shared_address(queries) + group * 64 * D * 2;
  const Group heads(p.group);
  const auto release = [&](int s) {
    if (elected) ptx::barrier_arrive(ptx::shared_address(&empty[s]));
  };
  const auto chunk_at = [&](int s) { return ring + s * L::kChunkBytes; };
  const auto sync_own = [&] { ptx::named_barrier(kOwnBarrier + group, 128); };
  const auto begin_queries = [&](int w) {
    if (w >= 0)
      load_queries<D>(p, heads, tiles[w / p.kv.num_kv_heads], w % p.kv.num_kv_heads, group * 64,
                      own_queries);
  };
  const std::uint64_t q = wgmma::descriptor(own_queries, 128, L::kRows8);
  begin_queries(work.at(0));

  for (int round = 0; work.has_round(round); ++round) {
    const int w = work.at(round);
    if (w < 0) break;
    const AttentionTile tile = tiles[w / p.kv.num_kv_heads];
    const int all_keys = tile.first_position + tile.num_tokens;
    ptx::wait_for_copies();
    ptx::fence_shared_proxy();
    sync_own();
    const Rows rows(p, heads, tile, group * 64);
    // Before any split: the first one merged into this, by weights 0 and 1, is as it was, the signs
    // of its zeros too.
    float out[D / 2];
#pragma unroll
    for (int i = 0; i < D / 2; ++i)
      out[i] = -0.0F;
    float max[2] = {-INFINITY, -INFINITY};
    float sum[2] = {0.0F, 0.0F};

    for (int first = first_split(tile.first_position, p.window) * kSplitKeys;;) {
      const int num_keys = min(kSplitKeys, all_keys - first);
      float s[2][kChunkKeys / 2];
      // Scores of one or both chunks. Where the second does not exist, all its keys are masked.
      const auto begin_scores = [&](float(&scores)[kChunkKeys / 2]) {
        const std::uint64_t k =
            wgmma::descriptor(ptx::shared_address(chunk_at(stage)), 128, L::kRows8);
        ptx::barrier_wait(ptx::shared_address(&full[stage]), phase);
        wgmma::fence();
        wgmma::product<true>(scores, q, k);
#pragma unroll
        for (int step = 1; step < kSteps; ++step)
          wgmma::product(scores, wgmma::advance(q, step * 256), wgmma::advance(k, step * 256));
        wgmma::commit();
      };
      const int key_stage = stage;
      begin_scores(s[0]);
      next_stage();
      if (num_keys > kChunkKeys) {
        begin_scores(s[1]);
        wgmma::wait<1>();
        release(key_stage);
        wgmma::wait<0>();
        release(stage);
        next_stage();
      } else {
        wgmma::wait<0>();
        release(key_stage);
#pragma unroll
        for (int i = 0; i < kChunkKeys / 2; ++i)
          s[1][i] = 0.0F;
      }
      const int next = first + kSplitKeys;
      if (next >= all_keys) {  // the queries are no longer read: the next tile's may come
        sync_own();
        begin_queries(work.at(round + 1));
      }
      mask_scores(rows, first, num_keys, s);
      float new_max[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float best[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};  // short chains
#pragma unroll
        for (int i = 0; i < kChunkKeys / 2; ++i)
          best[i % 4] =
              fmaxf(best[i % 4],
                    s[i / (kChunkKeys / 4)][i % (kChunkKeys / 4) / 2 * 4 + i % 2 + half * 2]);
        new_max[half] = fmaxf(fmaxf(best[0], best[1]), fmaxf(best[2], best[3]));
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        new_max[half] = fmaxf(new_max[half], __shfl_xor_sync(0xffffffff, new_max[half], 1));
        new_max[half] = fmaxf(new_max[half], __shfl_xor_sync(0xffffffff, new_max[half], 2));
      }
      const float base[2] = {attention_base(new_max[0], p.factor),
                             attention_base(new_max[1], p.factor)};
      // Weights; their sums in the order of the rule: a lane's keys of each quarter of 64, then the
      // quarters.
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
            const float one = attention_weight(s[c][i], base[half], p.factor);
            const float two = attention_weight(s[c][i + 1], base[half], p.factor);
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
      if (num_keys == kSplitKeys) {
        const int value_stage = stage;
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const std::uint64_t v =
              wgmma::descriptor(ptx::shared_address(chunk_at(stage)), L::kRows8, 128);
          ptx::barrier_wait(ptx::shared_address(&full[stage]), phase);
          wgmma::fence();
          if (c == 0)
            wgmma::product_transposed<true>(values, weights[c][0], v);
          else
            wgmma::product_transposed(values, weights[c][0], v);
#pragma unroll
          for (int step = 1; step < kChunkSteps; ++step)
            wgmma::product_transposed(values, weights[c][step],
                                      wgmma::advance(v, step * 2 * L::kRows8));
          wgmma::commit();
          if (c == 0) next_stage();
        }
        wgmma::wait<1>();
        release(value_stage);
        wgmma::wait<0>();
        release(stage);
        next_stage();
      } else {
        // The last chunks of the tile: only the steps that have keys, garbage cleared.
#pragma unroll
        for (int i = 0; i < D / 2; ++i)
          values[i] = 0.0F;
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int left = num_keys - c * kChunkKeys;
          if (left > 0) {
            ptx::barrier_wait(ptx::shared_address(&full[stage]), phase);
            unsigned char* const chunk = chunk_at(stage);
            const std::uint64_t v = wgmma::descriptor(ptx::shared_address(chunk), L::kRows8, 128);
            if (left < kChunkKeys) clear_values<D>(chunk, left);
            ptx::fence_shared_proxy();
            sync_own();
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
            release(stage);
            next_stage();
          }
        }
      }

      // A row of which the split holds no key passes it by: as it is, plus -0.
      const bool none[2] = {first + num_keys <= rows.first_key[0] || first > rows.position[0],
                            first + num_keys <= rows.first_key[1] || first > rows.position[1]};
      if (none[0] || none[1]) {
#pragma unroll
        for (int i = 0; i < D / 2; ++i)
          if (none[i % 4 / 2]) values[i] = -0.0F;
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const bool is_first = rows.first_key[half] / kSplitKeys * kSplitKeys == first;
        const float larger = none[half] ? max[half] : fmaxf(max[half], new_max[half]);
        float a = merge_weight(max[half], larger, p.factor);
        float b = merge_weight(new_max[half], larger, p.factor);
        if (is_first || none[half]) {
          a = none[half] ? 1.0F : 0.0F;
          b = none[half] ? 0.0F : 1.0F;
        }
#pragma unroll
        for (int i = 0; i < D / 2; ++i)
          if (i % 4 / 2 == half) out[i] = merge(out[i], a, values[i], b);
        sum[half] = merge(sum[half], a, new_sum[half], b);
        max[half] = larger;
      }
      if (next >= all_keys) break;
      first = next;
    }

#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = row_of(group * 64, half);
      const int token = heads.token(row);
      if (token >= tile.num_tokens) continue;
      const int head = w % p.kv.num_kv_heads * p.group + heads.head(row);
      const float scale = __frcp_rn(sum[half]);
#pragma unroll
      for (int g = 0; g < D / 8; ++g)
        *reinterpret_cast<std::uint32_t*>(p.out + tiles_index(tile.first_row + token,
                                                              head * D + g * 8 + lane % 4 * 2,
                                                              p.out_cols)) =
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
