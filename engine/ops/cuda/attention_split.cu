#include "engine/ops/cuda/attention_items.cuh"
#include "engine/ops/cuda/attention_kernels.h"
#include "engine/ops/cuda/launch.cuh"

// Attention for the fewest rows, on mma.sync: attention_items.cuh says how items are dealt with.
//
// An item is up to 32 (token, head) rows of one KV head against 256 keys. Eight warps: warp (m, q)
// has the 16 rows of tile m. First it computes the scores of quarter q of the keys (64), then the
// four warps of a tile exchange maxima and weights through shared memory, and each computes a
// quarter of the head's dims over all keys. Every sum over dims or keys is one chain of mma.sync in
// ascending order, as in the prefill kernel. That is sooner done than an item of the wide kernel,
// which has more rows to give to each warp.

namespace thaw::ops::cuda {
namespace {

constexpr int kTiles = kItemRows / 16;
constexpr int kComputeWarps = kItemWarps;
static_assert(kComputeWarps == 4 * kTiles);
constexpr int kThreads = 32 * (kComputeWarps + kProducers);
constexpr int kWeightBytes = 16 * kSplitKeys * 2;  // weights of one tile of 16 rows

template <int D>
using Ring = KeyRing<D, 5>;

template <int D>
__global__ void __launch_bounds__(kThreads, kBlocksEach)
    split_kernel(const __grid_constant__ AttentionKernelParams p) {
  using R = Ring<D>;
  constexpr int kSteps = D / 16;  // of k16 over dims
  constexpr int kDimGroups = D / 8 / 4;  // n8 groups of dims a warp
  constexpr int kTokenBytes = D * 16;  // 8 tokens of a slab
  constexpr int kAllCompute = 1 + kTiles;  // the barrier of all compute warps
  extern __shared__ __align__(1024) unsigned char shared[];
  unsigned char* const ring = shared;
  __shared__ __align__(8) std::uint64_t full[R::kStages];
  __shared__ __align__(8) std::uint64_t empty[R::kStages];
  __shared__ float all_maxima[kTiles][4][16];  // [tile][quarter][row]
  __shared__ __align__(16) float all_sums[kTiles][4][16][4];  // ... [lane of the row's four]
  ptx::let_next_kernel_start();
  const AttentionItem* items = nullptr;
  const int work = items_of(p, ItemWidth::kNarrow, items);
  if (static_cast<int>(blockIdx.x) >= max(work, 1)) return;
  if (threadIdx.x == 0) {
    for (int i = 0; i < R::kStages; ++i) {
      ptx::barrier_init(ptx::shared_address(&full[i]), kProducers);
      ptx::barrier_init(ptx::shared_address(&empty[i]), kComputeWarps);
    }
    ptx::barrier_init_fence();
  }
  __syncthreads();
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (warp >= kComputeWarps) {
    if (lane == 0) bring_items<D, R>(p, items, work, ring, full, empty, warp - kComputeWarps);
    return;
  }

  RingPlace place;
  const int tile = warp / 4;
  const int quarter = warp % 4;
  unsigned char* const weights =
      shared + R::kBytes + tile * kWeightBytes;  // [key / 8][row / 8][8][8] bf16
  auto& maxima = all_maxima[tile];
  auto& sums = all_sums[tile];
  const auto release = [&] {
    __syncwarp();
    if (lane == 0) ptx::barrier_arrive(ptx::shared_address(&empty[place.stage]));
  };
  bool waited = false;
  bool merges = false;
  for (int w = blockIdx.x; w < work; w += gridDim.x) {
    const AttentionItem item = items[w / p.kv.num_kv_heads];
    merges = merges || item.merged != 0;
    const auto* entries = reinterpret_cast<const AttentionEntry*>(p.plan + item.entries_at);
    const int kv_head = w % p.kv.num_kv_heads;
    const int rows = item.num_entries * p.group;
    const int chunks = ceil_div(item.num_keys, kChunkKeys);
    const bool active = tile * 16 < rows;
    // This lane's two rows.
    AttentionEntry entry[2];
    const auto head = [&](int half) {
      return kv_head * p.group + (tile * 16 + lane / 4 + half * 8) % p.group;
    };
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = tile * 16 + lane / 4 + half * 8;
      entry[half] = row < rows ? entries[row / p.group] : AttentionEntry{-1, 0, 0, 0};
    }
    if (!waited) ptx::wait_for_previous_kernel();
    waited = true;
    std::uint32_t q[kSteps][4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const bool there = entry[half].row >= 0;
      const Bf16* from =
          p.q + (there ? entry[half].row * p.q_stride + head(half) * D : 0) + lane % 4 * 2;
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
        q[k][half] = there ? *reinterpret_cast<const std::uint32_t*>(from + k * 16) : 0U;
        q[k][half + 2] = there ? *reinterpret_cast<const std::uint32_t*>(from + k * 16 + 8) : 0U;
      }
    }

    // Set here, or the compiler takes them for alive from item to item, and spills.
    float s[8][4] = {};
    float max[2] = {-INFINITY, -INFINITY};
    for (int c = 0; c < chunks; ++c, place.advance(R::kStages)) {
      ptx::barrier_wait(ptx::shared_address(&full[place.stage]), place.phase);
      if (active && c == quarter) {
        const std::uint32_t keys =
            ptx::shared_address(ring) + place.stage * R::kChunkBytes + lane * 16;
#pragma unroll
        for (int j = 0; j < 8; ++j)
          s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0.0F;
          // Four groups of keys at a time: their chains hide each other's latency.
#pragma unroll
        for (int k = 0; k < kSteps; k += 2) {
#pragma unroll
          for (int j = 0; j < 8; j += 4) {
            std::uint32_t b[4][4];
#pragma unroll
            for (int i = 0; i < 4; ++i)
              ptx::load_matrices(b[i], keys + (j + i) * kTokenBytes + k * 256);
#pragma unroll
            for (int i = 0; i < 4; ++i)
              ptx::mma(s[j + i], q[k], b[i][0], b[i][1]);
#pragma unroll
            for (int i = 0; i < 4; ++i)
              ptx::mma(s[j + i], q[k + 1], b[i][2], b[i][3]);
          }
        }
        int begin[2];  // the keys of the split that the rows see
        int last[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const bool there = entry[half].row >= 0;
          const int base = item.split * kSplitKeys;
          begin[half] = there ? first_key(entry[half].position, p.window) - base : 0;
          last[half] = item.num_keys - 1;
          if (there) last[half] = min(last[half], entry[half].position - base);
        }
#pragma unroll
        for (int j = 0; j < 8; ++j) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int key = quarter * kChunkKeys + j * 8 + lane % 4 * 2 + i % 2;
            if (key > last[i / 2] || key < begin[i / 2]) s[j][i] = -INFINITY;
            max[i / 2] = fmaxf(max[i / 2], s[j][i]);
          }
        }
      }
      release();
    }
    if (active) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        max[half] = fmaxf(max[half], __shfl_xor_sync(0xffffffff, max[half], 1));
        max[half] = fmaxf(max[half], __shfl_xor_sync(0xffffffff, max[half], 2));
        if (lane % 4 == 0) maxima[quarter][lane / 4 + half * 8] = max[half];
      }
      ptx::named_barrier(1 + tile, 128);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = lane / 4 + half * 8;
        max[half] =
            fmaxf(fmaxf(maxima[0][row], maxima[1][row]), fmaxf(maxima[2][row], maxima[3][row]));
      }
      float sum[2] = {0.0F, 0.0F};
      if (quarter < chunks) {
        const float base[2] = {attention_base(max[0], p.factor), attention_base(max[1], p.factor)};
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          unsigned char* at = weights + (quarter * 8 + j) * 256 + lane * 4;
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const float first = attention_weight(s[j][half * 2], base[half], p.factor);
            const float second = attention_weight(s[j][half * 2 + 1], base[half], p.factor);
            sum[half] = __fadd_rn(__fadd_rn(sum[half], first), second);
            *reinterpret_cast<std::uint32_t*>(at + half * 128) = ptx::pack_bf16(first, second);
          }
        }
      }
      sums[quarter][lane / 4][lane % 4] = sum[0];
      sums[quarter][lane / 4 + 8][lane % 4] = sum[1];
      ptx::named_barrier(1 + tile, 128);
    }

    // Values: this warp's quarter of the dims over all keys.
    float o[kDimGroups][4] = {};
    for (int c = 0; c < chunks; ++c, place.advance(R::kStages)) {
      ptx::barrier_wait(ptx::shared_address(&full[place.stage]), place.phase);
      if (active) {
        // Transposed ldmatrix: tokens 0-7 and 8-15 of two neighbouring groups of 8 dims.
        const std::uint32_t values = ptx::shared_address(ring) + place.stage * R::kChunkBytes +
                                     (lane / 8 % 2) * kTokenBytes +
                                     (quarter * kDimGroups + lane / 16) * 128 + lane % 8 * 16;
        const std::uint32_t mine = ptx::shared_address(weights) + c * 8 * 256 + lane * 16;
        const int left = item.num_keys - c * kChunkKeys;
        if (left >= kChunkKeys) {
          std::uint32_t a[4][4];
#pragma unroll
          for (int k = 0; k < 4; ++k)
            ptx::load_matrices(a[k], mine + k * 512);
#pragma unroll
          for (int k = 0; k < 4; ++k) {
#pragma unroll
            for (int g = 0; g < kDimGroups; g += 2) {
              std::uint32_t b[4];
              ptx::load_matrices_transposed(b, values + k * 2 * kTokenBytes + g * 128);
              ptx::mma(o[g], a[k], b[0], b[1]);
              ptx::mma(o[g + 1], a[k], b[2], b[3]);
            }
          }
        } else {
          for (int k = 0; k < ceil_div(left, 16); ++k) {
            std::uint32_t a[4];
            ptx::load_matrices(a, mine + k * 512);
            // Keys behind the last one anybody sees may be garbage, and 0 * NaN is NaN.
            const int keys = left - k * 16 - lane % 4 * 2;
            const auto keep = [&](int gone) {
              return keys - gone >= 2 ? 0xffffffffU : keys - gone == 1 ? 0xffffU : 0U;
            };
            const std::uint32_t low = keep(0);
            const std::uint32_t high = keep(8);
#pragma unroll
            for (int g = 0; g < kDimGroups; g += 2) {
              std::uint32_t b[4];
              ptx::load_matrices_transposed(b, values + k * 2 * kTokenBytes + g * 128);
              ptx::mma(o[g], a, b[0] & low, b[1] & high);
              ptx::mma(o[g + 1], a, b[2] & low, b[3] & high);
            }
          }
        }
      }
      release();
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (entry[half].row < 0) continue;
      const int row = lane / 4 + half * 8;
      float total[4] = {};
#pragma unroll
      for (int part = 0; part < 4; ++part) {
        const float4 one = *reinterpret_cast<const float4*>(sums[part][row]);
        total[0] = part == 0 ? one.x : __fadd_rn(total[0], one.x);
        total[1] = part == 0 ? one.y : __fadd_rn(total[1], one.y);
        total[2] = part == 0 ? one.z : __fadd_rn(total[2], one.z);
        total[3] = part == 0 ? one.w : __fadd_rn(total[3], one.w);
      }
      const float all = __fadd_rn(__fadd_rn(total[0], total[1]), __fadd_rn(total[2], total[3]));
      const int dim = quarter * kDimGroups * 8 + lane % 4 * 2;
      if (num_splits(entry[half].position, p.window) == 1) {
        const float scale = __frcp_rn(all);
#pragma unroll
        for (int g = 0; g < kDimGroups; ++g)
          *reinterpret_cast<std::uint32_t*>(
              p.out + tiles_index(entry[half].row, head(half) * D + dim + g * 8, p.out_cols)) =
              ptx::pack_bf16(__fmul_rn(o[g][half * 2], scale),
                             __fmul_rn(o[g][half * 2 + 1], scale));
        continue;
      }
      const std::size_t at =
          static_cast<std::size_t>(entry[half].partial) * p.num_heads + head(half);
#pragma unroll
      for (int g = 0; g < kDimGroups; ++g)
        *reinterpret_cast<float2*>(p.partial_out + at * D + dim + g * 8) = {o[g][half * 2],
                                                                            o[g][half * 2 + 1]};
      if (quarter == 0 && lane % 4 == 0)
        *reinterpret_cast<float2*>(p.partial_stats + at * 2) = {max[half], all};
    }
    if (item.num_entries == 1 && num_splits(entries[0].position, p.window) == 1) continue;
    // This item's results are there for everybody before the counters say so.
    __threadfence();
    ptx::named_barrier(kAllCompute, 32 * kComputeWarps);
    count_splits(p, item, kv_head, static_cast<int>(threadIdx.x));
  }
  if (!waited) ptx::wait_for_previous_kernel();
  if (merges) merge_items<D>(p, items, work, warp, kComputeWarps);
}

template <int D>
constexpr int kSharedBytes = Ring<D>::kBytes + kTiles* kWeightBytes;

}  // namespace

void prepare_split_kernels() {
  for (const int head_dim : {64, 128})
    with_head_dim(head_dim, [&]<int D>() {
      prepare_item_kernel(&split_kernel<D>, kThreads, kSharedBytes<D>);
    });
}

void attention_splits(const CudaDevice& device, const AttentionKernelParams& params,
                      thaw::cuda::StreamView stream) {
  with_head_dim(params.kv.head_dim, [&]<int D>() {
    launch_early(&split_kernel<D>,
                 {kBlocksEach * device.multiprocessors(), kThreads, kSharedBytes<D>}, stream.get(),
                 "attention (splits)", params);
  });
}

}  // namespace thaw::ops::cuda
