#include <algorithm>

#include "engine/cuda/check.h"
#include "engine/ops/cuda/attention_kernels.h"
#include "engine/ops/cuda/attention_math.cuh"

// Attention for few rows a sequence: every split of every sequence is an item of its own, so that a
// long context fills the device; a second kernel merges the splits of each row in order.
//
// An item is up to 64 (token, head) rows of one KV head against 256 keys. Sixteen warps: warp (m,
// q) has the 16 rows of tile m. First it computes the scores of quarter q of the keys (64), then
// the four warps of a tile exchange maxima and weights through shared memory, and each computes a
// quarter of the head's dims over all keys. Every sum over dims or keys is one chain of mma.sync in
// ascending order, as in the prefill kernel. Four more warps keep a ring of 64-key chunks full,
// across items: while one item is computed the next one's keys are on their way.

namespace thaw::ops::cuda {
namespace {

constexpr int kChunkKeys = 64;
constexpr int kChunkBlocks = kChunkKeys / kBlockSize;
constexpr int kComputeWarps = 16;
constexpr int kProducers = kChunkBlocks;  // warps, one for each block of a chunk
constexpr int kThreads = 32 * (kComputeWarps + kProducers);
constexpr int kWeightBytes = 16 * kSplitKeys * 2;  // weights of one tile of 16 rows
constexpr int kTiles = kItemRows / 16;

template <int D>
struct Ring {
  static constexpr int kChunkBytes = kChunkKeys * D * 2;
  static constexpr int kStages = 11 * 16384 / kChunkBytes > 16 ? 16 : 11 * 16384 / kChunkBytes;
  static constexpr int kBytes = kStages * kChunkBytes;
};

template <int D>
__global__ void __launch_bounds__(kThreads, 1)
    split_kernel(const __grid_constant__ AttentionKernelParams p) {
  using R = Ring<D>;
  constexpr int kSteps = D / 16;  // of k16 over dims
  constexpr int kDimGroups = D / 8 / 4;  // n8 groups of dims a warp
  constexpr int kTokenBytes = D * 16;  // 8 tokens of a slab
  extern __shared__ __align__(1024) unsigned char shared[];
  unsigned char* const ring = shared;
  unsigned char* const weights = shared + R::kBytes;  // [tile][key / 8][row / 8][8][8] bf16
  __shared__ __align__(8) std::uint64_t full[R::kStages];
  __shared__ __align__(8) std::uint64_t empty[R::kStages];
  __shared__ float maxima[kTiles][4][16];  // [tile][quarter][row]
  __shared__ float sums[kTiles][4][16][4];  // [tile][quarter][row][lane of the row's four]
  if (threadIdx.x == 0) {
    for (int i = 0; i < R::kStages; ++i) {
      ptx::barrier_init(ptx::shared_address(&full[i]), 1);
      ptx::barrier_init(ptx::shared_address(&empty[i]), kComputeWarps);
    }
    ptx::barrier_init_fence();
  }
  __syncthreads();
  ptx::let_next_kernel_start();
  ptx::wait_for_previous_kernel();
  const AttentionPlanHeader header = header_of(p);
  const auto* items = reinterpret_cast<const AttentionItem*>(p.plan + header.items_at);
  const int work = header.num_items * p.kv.num_kv_heads;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  int stage = 0;
  int phase = 0;
  const auto next_stage = [&] {
    if (++stage == R::kStages) {
      stage = 0;
      phase ^= 1;
    }
  };

  if (warp >= kComputeWarps) {  // the producers
    if (lane != 0) return;
    const int own = warp - kComputeWarps;
    for (int w = blockIdx.x; w < work; w += gridDim.x) {
      const AttentionItem item = items[w / p.kv.num_kv_heads];
      const std::int32_t* table = p.plan + item.table_at;
      const int blocks = ceil_div(item.num_keys, kBlockSize);
      for (int value = 0; value < 2; ++value) {
        for (int first = 0; first < blocks; first += kChunkBlocks, next_stage()) {
          const int count = min(kChunkBlocks, blocks - first);
          const std::uint32_t bytes = kBlockSize * D * 2;
          ptx::barrier_wait(ptx::shared_address(&empty[stage]), phase ^ 1);
          if (own == 0) ptx::barrier_expect(ptx::shared_address(&full[stage]), count * bytes);
          if (own < count)
            ptx::bulk_copy(
                ptx::shared_address(ring) + stage * R::kChunkBytes + own * bytes,
                p.kv.slab(table[first + own], p.layer, value != 0, w % p.kv.num_kv_heads), bytes,
                ptx::shared_address(&full[stage]));
        }
      }
    }
    return;
  }

  const int tile = warp / 4;
  const int quarter = warp % 4;
  for (int w = blockIdx.x; w < work; w += gridDim.x) {
    const AttentionItem item = items[w / p.kv.num_kv_heads];
    const auto* entries = reinterpret_cast<const AttentionEntry*>(p.plan + item.entries_at);
    const int kv_head = w % p.kv.num_kv_heads;
    const int rows = item.num_entries * p.group;
    const int chunks = ceil_div(item.num_keys, kChunkKeys);
    const bool active = tile * 16 < rows;
    // This lane's two rows: entry, head, and the last key that the row sees in this split.
    AttentionEntry entry[2];
    int head[2];
    int last_key[2];
    std::uint32_t q[kSteps][4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = tile * 16 + lane / 4 + half * 8;
      const bool there = row < rows;
      entry[half] = there ? entries[row / p.group] : AttentionEntry{-1, 0, 0};
      head[half] = kv_head * p.group + row % p.group;
      last_key[half] = there ? entry[half].position - item.split * kSplitKeys : kSplitKeys;
      const Bf16* from =
          p.q + (there ? entry[half].row * p.q_stride + head[half] * D : 0) + lane % 4 * 2;
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
        q[k][half] = there ? *reinterpret_cast<const std::uint32_t*>(from + k * 16) : 0U;
        q[k][half + 2] = there ? *reinterpret_cast<const std::uint32_t*>(from + k * 16 + 8) : 0U;
      }
    }

    float s[8][4];
    float max[2] = {-INFINITY, -INFINITY};
    for (int c = 0; c < chunks; ++c, next_stage()) {
      ptx::barrier_wait(ptx::shared_address(&full[stage]), phase);
      if (active && c == quarter) {
        const std::uint32_t keys = ptx::shared_address(ring) + stage * R::kChunkBytes + lane * 16;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0.0F;
#pragma unroll
          for (int k = 0; k < kSteps; k += 2) {
            std::uint32_t b[4];
            ptx::load_matrices(b, keys + j * kTokenBytes + k * 256);
            ptx::mma(s[j], q[k], b[0], b[1]);
            ptx::mma(s[j], q[k + 1], b[2], b[3]);
          }
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int key = quarter * kChunkKeys + j * 8 + lane % 4 * 2 + i % 2;
            if (key > last_key[i / 2] || key >= item.num_keys) s[j][i] = -INFINITY;
            max[i / 2] = fmaxf(max[i / 2], s[j][i]);
          }
        }
      }
      __syncwarp();
      if (lane == 0) ptx::barrier_arrive(ptx::shared_address(&empty[stage]));
    }
    if (active) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        max[half] = fmaxf(max[half], __shfl_xor_sync(0xffffffff, max[half], 1));
        max[half] = fmaxf(max[half], __shfl_xor_sync(0xffffffff, max[half], 2));
        if (lane % 4 == 0) maxima[tile][quarter][lane / 4 + half * 8] = max[half];
      }
      ptx::named_barrier(1 + tile, 128);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = lane / 4 + half * 8;
        max[half] = fmaxf(fmaxf(maxima[tile][0][row], maxima[tile][1][row]),
                          fmaxf(maxima[tile][2][row], maxima[tile][3][row]));
      }
      float sum[2] = {0.0F, 0.0F};
      if (quarter < chunks) {
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          unsigned char* at = weights + tile * kWeightBytes + (quarter * 8 + j) * 256 + lane * 4;
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const float first = attention_weight(s[j][half * 2], max[half], p.factor);
            const float second = attention_weight(s[j][half * 2 + 1], max[half], p.factor);
            sum[half] = __fadd_rn(__fadd_rn(sum[half], first), second);
            *reinterpret_cast<std::uint32_t*>(at + half * 128) = ptx::pack_bf16(first, second);
          }
        }
      }
      sums[tile][quarter][lane / 4][lane % 4] = sum[0];
      sums[tile][quarter][lane / 4 + 8][lane % 4] = sum[1];
      ptx::named_barrier(1 + tile, 128);
    }

    // Values: this warp's quarter of the dims over all keys.
    float o[kDimGroups][4] = {};
    for (int c = 0; c < chunks; ++c, next_stage()) {
      ptx::barrier_wait(ptx::shared_address(&full[stage]), phase);
      if (active) {
        // Transposed ldmatrix: tokens 0-7 and 8-15 of two neighbouring groups of 8 dims.
        const std::uint32_t values = ptx::shared_address(ring) + stage * R::kChunkBytes +
                                     (lane / 8 % 2) * kTokenBytes +
                                     (quarter * kDimGroups + lane / 16) * 128 + lane % 8 * 16;
        const std::uint32_t own =
            ptx::shared_address(weights) + tile * kWeightBytes + c * 8 * 256 + lane * 16;
        const int steps = min(4, ceil_div(item.num_keys - c * kChunkKeys, 16));
        for (int k = 0; k < steps; ++k) {
          std::uint32_t a[4];
          ptx::load_matrices(a, own + k * 512);
          // Keys behind the last one anybody sees may be garbage, and 0 * NaN is NaN.
          const int left = item.num_keys - c * kChunkKeys - k * 16 - lane % 4 * 2;
          const auto keep = [&](int gone) {
            return left - gone >= 2 ? 0xffffffffU : left - gone == 1 ? 0xffffU : 0U;
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
      __syncwarp();
      if (lane == 0) ptx::barrier_arrive(ptx::shared_address(&empty[stage]));
    }
    if (!active) continue;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (entry[half].row < 0) continue;
      const std::size_t at =
          static_cast<std::size_t>(entry[half].partial) * p.num_heads + head[half];
      float* out = p.partial_out + at * D + quarter * kDimGroups * 8 + lane % 4 * 2;
#pragma unroll
      for (int g = 0; g < kDimGroups; ++g)
        *reinterpret_cast<float2*>(out + g * 8) = {o[g][half * 2], o[g][half * 2 + 1]};
      if (quarter == 0 && lane % 4 == 0) {
        const int row = lane / 4 + half * 8;
        float total[4];
#pragma unroll
        for (int i = 0; i < 4; ++i)
          total[i] = __fadd_rn(__fadd_rn(__fadd_rn(sums[tile][0][row][i], sums[tile][1][row][i]),
                                         sums[tile][2][row][i]),
                               sums[tile][3][row][i]);
        *reinterpret_cast<float2*>(p.partial_stats + at * 2) = {
            max[half], __fadd_rn(__fadd_rn(total[0], total[1]), __fadd_rn(total[2], total[3]))};
      }
    }
  }
}

// One warp a (row, head): its splits in ascending order.
template <int D>
__global__ void __launch_bounds__(128)
    merge_kernel(const __grid_constant__ AttentionKernelParams p) {
  constexpr int kDims = D / 32;  // a lane
  ptx::let_next_kernel_start();
  ptx::wait_for_previous_kernel();
  const AttentionPlanHeader header = header_of(p);
  const auto* rows = reinterpret_cast<const AttentionSplitRow*>(p.plan + header.split_rows_at);
  const int lane = threadIdx.x % 32;
  const int work = header.num_split_rows * p.num_heads;
  for (int w = blockIdx.x * 4 + threadIdx.x / 32; w < work; w += gridDim.x * 4) {
    const AttentionSplitRow row = rows[w / p.num_heads];
    const int head = w % p.num_heads;
    float max = 0.0F;
    float sum = 0.0F;
    float out[kDims] = {};
#pragma unroll 4
    for (int split = 0; split < row.num_splits; ++split) {
      const std::size_t at = static_cast<std::size_t>(row.partial + split) * p.num_heads + head;
      const float2 stats = *reinterpret_cast<const float2*>(p.partial_stats + at * 2);
      float values[kDims];
#pragma unroll
      for (int i = 0; i < kDims; i += 2)
        *reinterpret_cast<float2*>(values + i) =
            *reinterpret_cast<const float2*>(p.partial_out + at * D + lane * kDims + i);
      if (split == 0) {
        max = stats.x;
        sum = stats.y;
#pragma unroll
        for (int i = 0; i < kDims; ++i)
          out[i] = values[i];
        continue;
      }
      const float larger = fmaxf(max, stats.x);
      const float a = merge_weight(max, larger, p.factor);
      const float b = merge_weight(stats.x, larger, p.factor);
#pragma unroll
      for (int i = 0; i < kDims; ++i)
        out[i] = merge(out[i], a, values[i], b);
      sum = merge(sum, a, stats.y, b);
      max = larger;
    }
    const float scale = __frcp_rn(sum);
    Bf16* to = p.out + tiles_index(row.row, head * D + lane * kDims, p.out_cols);
#pragma unroll
    for (int i = 0; i < kDims; i += 2)
      *reinterpret_cast<std::uint32_t*>(to + i) =
          ptx::pack_bf16(__fmul_rn(out[i], scale), __fmul_rn(out[i + 1], scale));
  }
}

template <int D>
constexpr int kSharedBytes = Ring<D>::kBytes + kTiles* kWeightBytes;

template <int D>
void launch(const CudaDevice& device, const AttentionKernelParams& p, cudaStream_t stream) {
  cudaLaunchConfig_t config{};
  config.stream = stream;
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &overlap;
  config.numAttrs = 1;
  config.gridDim = dim3(static_cast<unsigned>(device.multiprocessors()));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = kSharedBytes<D>;
  thaw::cuda::check(cudaLaunchKernelEx(&config, split_kernel<D>, p), "attention (splits)");
  config.gridDim = dim3(static_cast<unsigned>(device.multiprocessors() * 4));
  config.blockDim = dim3(128);
  config.dynamicSmemBytes = 0;
  thaw::cuda::check(cudaLaunchKernelEx(&config, merge_kernel<D>, p), "attention (merge)");
}

template <int D>
void prepare() {
  thaw::cuda::check(
      cudaFuncSetAttribute(split_kernel<D>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           kSharedBytes<D>),
      "shared memory of the split kernel");
}

}  // namespace

void prepare_split_kernels() {
  prepare<64>();
  prepare<128>();
}

void attention_splits(const CudaDevice& device, const AttentionKernelParams& params,
                      thaw::cuda::StreamView stream) {
  if (params.kv.head_dim == 64)
    launch<64>(device, params, stream.get());
  else
    launch<128>(device, params, stream.get());
}

}  // namespace thaw::ops::cuda
