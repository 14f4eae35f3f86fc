#include <algorithm>

#include "engine/ops/cuda/kernels.h"
#include "engine/ops/cuda/launch.cuh"
#include "engine/ops/cuda/linear_epilogue.cuh"
#include "engine/ops/cuda/wgmma.cuh"

// Linear for many rows: tensor cores at full rate.
//
// A block computes tiles of 128 rows of x by N outputs: two warpgroups of 64 rows each, and one
// more whose four warps are the producers of a ring of K chunks. x is the M operand, the weight the
// N operand of wgmma, both as they lie in memory. There are no clusters: copies of the weights
// to two blocks at once, bulk or through tensor maps, were measured at half the speed. K is stepped
// by 16 in order in one accumulator, so each output is the chain of the streaming kernel.

// Below sm_90 the kernel is empty, and what it uses is unused.
#pragma nv_diag_suppress 177

namespace thaw::ops::cuda {
namespace {

constexpr int kRowTiles = 2;  // of a block: one warpgroup each
constexpr int kBlockRows = kRowTiles * kTokenTile;
constexpr int kThreads = 128 * (kRowTiles + 1);
constexpr int kProducers = 4;  // warps: a copy takes its lane some 200 cycles to issue
constexpr int kTileBytes = kTokenTile * kChunk * 2;  // 8 KiB: 64 rows of x, one chunk
constexpr int kGroupBytes = kWeightGroup * kChunk * 2;  // 2 KiB: 16 outputs, one chunk
constexpr int kLeading = 128;  // next core matrix along K
constexpr int kStride = 1024;  // next 8 rows

template <int N>
struct Shape {
  static constexpr int kStageBytes = kRowTiles * kTileBytes + N / kWeightGroup * kGroupBytes;
  static constexpr int kStages = 224 * 1024 / kStageBytes;
};

struct TileParams {
  const char* weight;
  const char* x;
  LinearOut out;
  int groups;  // row groups of the weight
  int row_tiles;  // tiles of 64 rows that exist
  int chunks;  // of K
  int block_rows;  // tiles of kBlockRows rows
  int tiles;  // of the whole output
};

// Outputs `row` and `row + 1` of a token, as one write where they exist and are aligned.
template <Epilogue E>
__device__ __forceinline__ void store_pair(const LinearOut& out, int token, int row, float first,
                                           float second) {
  if constexpr (E == Epilogue::kBf16) {
    Bf16* at = static_cast<Bf16*>(out.data) + token * out.stride + row;
    if (row + 1 < out.rows && out.stride % 2 == 0) {
      *reinterpret_cast<std::uint32_t*>(at) =
          ptx::pack_bf16(with_bias(out, first, row), with_bias(out, second, row + 1));
    } else {
      if (row < out.rows) at[0] = __float2bfloat16_rn(with_bias(out, first, row));
      if (row + 1 < out.rows) at[1] = __float2bfloat16_rn(with_bias(out, second, row + 1));
    }
  } else if (E == Epilogue::kF32 && row + 1 < out.rows && out.stride % 2 == 0) {
    *reinterpret_cast<float2*>(static_cast<float*>(out.data) + token * out.stride + row) = {
        with_bias(out, first, row), with_bias(out, second, row + 1)};
  } else {
    if (row < out.rows) store_f32<E>(out, token, row, first);
    if (row + 1 < out.rows) store_f32<E>(out, token, row + 1, second);
  }
}

template <int N, Epilogue E>
__device__ __forceinline__ void store(const LinearOut& out, int first_token, int first_row,
                                      const float (&d)[N / 2]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int token = first_token + threadIdx.x % 128 / 32 * 16 + lane / 4 + half * 8;
    if (token >= out.num_rows) continue;
    if constexpr (E == Epilogue::kSwigluTiles) {
      const int width = out.rows / 2;
#pragma unroll
      for (int j = 0; j < N / 16; ++j) {  // columns 16j .. 16j+7 are gates, the next 8 their ups
        const int column = first_row / 2 + j * 8 + lane % 4 * 2;
        if (column >= width) break;
        const std::uint32_t pair =
            ptx::pack_bf16(swiglu(d[8 * j + 2 * half], d[8 * j + 4 + 2 * half]),
                           swiglu(d[8 * j + 2 * half + 1], d[8 * j + 4 + 2 * half + 1]));
        *reinterpret_cast<std::uint32_t*>(static_cast<Bf16*>(out.data) +
                                          tiles_index(token, column, width)) = pair;
      }
    } else {
      const int row = first_row + lane % 4 * 2;
      if constexpr (E == Epilogue::kAddF32) {
        // Reads of a batch before its writes: the compiler may not reorder them, and one by one
        // each would wait for the memory.
        constexpr int kBatch = N / 8 < 16 ? N / 8 : 16;
        float* at = static_cast<float*>(out.data) + token * out.stride + row;
        const bool pairs = out.stride % 2 == 0;
#pragma unroll
        for (int batch = 0; batch < N / 8; batch += kBatch) {
          float2 old[kBatch];
#pragma unroll
          for (int j = 0; j < kBatch; ++j)
            if (pairs && row + (batch + j) * 8 + 1 < out.rows)
              old[j] = *reinterpret_cast<const float2*>(at + (batch + j) * 8);
#pragma unroll
          for (int j = 0; j < kBatch; ++j) {
            const int i = 4 * (batch + j) + 2 * half;
            const int r = row + (batch + j) * 8;
            if (pairs && r + 1 < out.rows)
              *reinterpret_cast<float2*>(at + (batch + j) * 8) = {
                  __fadd_rn(old[j].x, with_bias(out, d[i], r)),
                  __fadd_rn(old[j].y, with_bias(out, d[i + 1], r + 1))};
            else
              store_pair<E>(out, token, r, d[i], d[i + 1]);
          }
        }
      } else {
#pragma unroll
        for (int j = 0; j < N / 8; ++j)
          store_pair<E>(out, token, row + j * 8, d[4 * j + 2 * half], d[4 * j + 2 * half + 1]);
      }
    }
  }
}

template <int N, Epilogue E>
__global__ void __launch_bounds__(kThreads, 1) tile_kernel(const __grid_constant__ TileParams p) {
#if THAW_HOPPER
  using S = Shape<N>;
  extern __shared__ __align__(1024) unsigned char ring[];
  __shared__ __align__(8) std::uint64_t full[S::kStages];
  __shared__ __align__(8) std::uint64_t empty[S::kStages];
  if (threadIdx.x == 0) {
    for (int i = 0; i < S::kStages; ++i) {
      ptx::barrier_init(ptx::shared_address(&full[i]), kProducers);
      ptx::barrier_init(ptx::shared_address(&empty[i]), kRowTiles);
    }
    ptx::barrier_init_fence();
  }
  __syncthreads();
  ptx::let_next_kernel_start();
  ptx::wait_for_previous_kernel();
  int stage = 0;
  int phase = 0;
  const auto next_stage = [&] {
    if (++stage == S::kStages) {
      stage = 0;
      phase ^= 1;
    }
  };

  if (threadIdx.x < 128) {  // the producers: one lane of each warp has its share of the copies
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x % 32 == 0) {
      constexpr int kShare = N / kWeightGroup / kProducers;
      const int producer = threadIdx.x / 32;
      const std::size_t step = static_cast<std::size_t>(p.chunks);
      for (int tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
        const int row_tile = tile % p.block_rows * kRowTiles;
        const int group = tile / p.block_rows * (N / kWeightGroup);
        const int row_tiles = max(0, min(kRowTiles, p.row_tiles - row_tile));
        const int groups = min(N / kWeightGroup, p.groups - group);
        const int own = producer * kShare;
        const int share = max(0, min(kShare, groups - own));
        const std::uint32_t bytes = (producer < row_tiles ? kTileBytes : 0) + share * kGroupBytes;
        const char* x = p.x + (row_tile + producer) * step * kTileBytes;
        const char* weight = p.weight + (group + own) * step * kGroupBytes;
        for (int c = 0; c < p.chunks; ++c, next_stage()) {
          ptx::barrier_wait(ptx::shared_address(&empty[stage]), phase ^ 1);
          const std::uint32_t barrier = ptx::shared_address(&full[stage]);
          const std::uint32_t to = ptx::shared_address(ring) + stage * S::kStageBytes;
          ptx::barrier_expect(barrier, bytes);
          if (producer < row_tiles)
            ptx::bulk_copy(to + producer * kTileBytes, x, kTileBytes, barrier);
          x += kTileBytes;
          const std::uint32_t at = to + kRowTiles * kTileBytes + own * kGroupBytes;
#pragma unroll
          for (int g = 0; g < kShare; ++g) {
            if (g >= share) break;
            ptx::bulk_copy(at + g * kGroupBytes, weight + g * step * kGroupBytes, kGroupBytes,
                           barrier);
          }
          weight += kGroupBytes;
        }
      }
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    const int group = threadIdx.x / 128 - 1;  // which 64 rows of the block
    const bool elected = threadIdx.x % 128 == 0;
    const auto release = [&](int s) {
      if (elected) ptx::barrier_arrive(ptx::shared_address(&empty[s]));
    };
    for (int tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
      float d[N / 2];
#pragma unroll
      for (int i = 0; i < N / 2; ++i)
        d[i] = 0.0F;
      int previous = 0;
      for (int c = 0; c < p.chunks; ++c) {
        ptx::barrier_wait(ptx::shared_address(&full[stage]), phase);
        const std::uint32_t at = ptx::shared_address(ring) + stage * S::kStageBytes;
        const std::uint64_t a = wgmma::descriptor(at + group * kTileBytes, kLeading, kStride);
        const std::uint64_t b = wgmma::descriptor(at + kRowTiles * kTileBytes, kLeading, kStride);
        wgmma::fence();
#pragma unroll
        for (int k = 0; k < kChunk / 16; ++k)
          wgmma::product(d, wgmma::advance(a, k * 2 * kLeading),
                         wgmma::advance(b, k * 2 * kLeading));
        wgmma::commit();
        // One chunk's products stay in flight; the chunk before is done with its stage.
        wgmma::wait<1>();
        if (c > 0) release(previous);
        previous = stage;
        next_stage();
      }
      wgmma::wait<0>();
      release(previous);
      const int token = tile % p.block_rows * kBlockRows + group * 64;
      store<N, E>(p.out, token, tile / p.block_rows * N, d);
    }
  }
#endif
}

template <int N>
auto kernel_for(Epilogue epilogue) {
  return with_epilogue(epilogue, [&]<Epilogue E>() { return &tile_kernel<N, E>; });
}

template <int N>
void prepare() {
  for (const Epilogue epilogue : kAllEpilogues)
    prepare_kernel(kernel_for<N>(epilogue), Shape<N>::kStages * Shape<N>::kStageBytes,
                   "shared memory of the tile kernel");
}

template <int N>
void launch(TileParams p, Epilogue epilogue, int multiprocessors, cudaStream_t stream) {
  using S = Shape<N>;
  p.block_rows = ceil_div(p.out.num_rows, kBlockRows);
  p.tiles = p.block_rows * ceil_div(p.out.rows, N);
  launch_early(kernel_for<N>(epilogue),
               {std::min(p.tiles, multiprocessors), kThreads,
                static_cast<std::size_t>(S::kStages) * S::kStageBytes},
               stream, "linear (tile)", p);
}

}  // namespace

void prepare_tile_kernels() {
  prepare<64>();
  prepare<128>();
  prepare<256>();
}

void linear_tile(const CudaDevice& device, const LinearParams& params,
                 thaw::cuda::StreamView stream) {
  TileParams p{};
  p.weight = reinterpret_cast<const char*>(params.weight.data);
  p.x = reinterpret_cast<const char*>(params.x.data);
  p.out = {params.out, params.out_stride, params.bias, params.weight.rows, params.num_rows};
  p.groups = ceil_div(params.weight.rows, kWeightGroup);
  p.row_tiles = ceil_div(params.num_rows, kTokenTile);
  p.chunks = params.weight.cols / kChunk;
  // Wide tiles read less for each product, narrow ones fill the device where there are few. Cost of
  // a choice: rounds of the busiest block, each as long as its tile over the rate measured for it.
  const int blocks = device.multiprocessors();
  const auto cost = [&](int width, double rate) {
    const int tiles = ceil_div(params.num_rows, kBlockRows) * ceil_div(params.weight.rows, width);
    return ceil_div(tiles, blocks) * width / rate;
  };
  const double wide = cost(256, 1.0);
  const double middle = cost(128, 0.85);
  const double narrow = cost(64, 0.6);
  if (wide <= middle && wide <= narrow)
    launch<256>(p, params.epilogue, blocks, stream.get());
  else if (middle <= narrow)
    launch<128>(p, params.epilogue, blocks, stream.get());
  else
    launch<64>(p, params.epilogue, blocks, stream.get());
}

}  // namespace thaw::ops::cuda
