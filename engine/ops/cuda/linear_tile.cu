#include <algorithm>

#include "engine/cuda/driver.h"
#include "engine/ops/cuda/kernels.h"
#include "engine/ops/cuda/launch.cuh"
#include "engine/ops/cuda/linear_epilogue.cuh"
#include "engine/ops/cuda/wgmma.cuh"

// Linear for many rows: tensor cores at full rate.
//
// A block computes tiles of 128 rows of x by N outputs: two warpgroups of 64 rows each, and one
// more of which one thread keeps a ring of K chunks full. x is the M operand, the weight the N
// operand of wgmma, both as they lie in memory: tensor maps see their core matrices as rows of 2
// KiB, so that one instruction brings all of a chunk's weights. There are no clusters: copies of
// the weights to two blocks at once were measured at half the speed. K is stepped by 16 in order in
// one accumulator, so each output is the chain of the streaming kernel.

// Below sm_90 the kernel is empty, and what it uses is unused.
#pragma nv_diag_suppress 177

namespace thaw::ops::cuda {
namespace {

constexpr int kRowTiles = 2;  // of a block: one warpgroup each
constexpr int kBlockRows = kRowTiles * kTokenTile;
constexpr int kThreads = 128 * (kRowTiles + 1);
constexpr int kTileBytes = kTokenTile * kChunk * 2;  // 8 KiB: 64 rows of x, one chunk
constexpr int kGroupBytes = kWeightGroup * kChunk * 2;  // 2 KiB: 16 outputs, one chunk
constexpr int kUnit = 256;  // words of 8 bytes, what tensor maps count in: a group's chunk
constexpr int kBand = 16;  // row tiles of kBlockRows that are worked through column by column
constexpr int kLeading = 128;  // next core matrix along K
constexpr int kStride = 1024;  // next 8 rows

template <int N>
struct Shape {
  static constexpr int kStageBytes = kRowTiles * kTileBytes + N / kWeightGroup * kGroupBytes;
  static constexpr int kStages = 224 * 1024 / kStageBytes;
};

struct TileParams {
  CUtensorMap weight;  // [groups][chunks][kUnit]
  CUtensorMap x;  // [tiles of 64 rows][4 chunks][kUnit]
  LinearOut out;
  int chunks;  // of K
  int block_rows;  // tiles of kBlockRows rows
  int block_cols;  // tiles of N outputs
};

struct TilePlace {
  int row;  // in tiles of kBlockRows
  int col;  // in tiles of N
};

// Bands of row tiles, column by column: what the blocks work on at a time is then about as high as
// wide, and the second-level cache brings the least.
__device__ __forceinline__ TilePlace place_of(const TileParams& p, int tile) {
  const int band = tile / (kBand * p.block_cols);
  const int rest = tile - band * kBand * p.block_cols;
  const int height = min(kBand, p.block_rows - band * kBand);
  return {band * kBand + rest % height, rest / height};
}

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
    put(out, reinterpret_cast<float2*>(static_cast<float*>(out.data) + token * out.stride + row),
        {with_bias(out, first, row), with_bias(out, second, row + 1)});
  } else {
    if (row < out.rows) store_f32<E>(out, token, row, first);
    if (row + 1 < out.rows) store_f32<E>(out, token, row + 1, second);
  }
}

// Each lane of four holds two neighbouring outputs of four groups of 8; afterwards each holds one
// group's 8.
__device__ __forceinline__ uint4 gather_group(std::uint32_t v0, std::uint32_t v1, std::uint32_t v2,
                                              std::uint32_t v3) {
  const int lane = threadIdx.x % 4;
  const bool odd = lane % 2 != 0;
  const std::uint32_t low = __shfl_xor_sync(0xffffffff, odd ? v0 : v1, 1);
  const std::uint32_t high = __shfl_xor_sync(0xffffffff, odd ? v2 : v3, 1);
  // Pairs of lanes: of groups 0 and 1, and of groups 2 and 3.
  const uint2 front = odd ? uint2{low, v1} : uint2{v0, low};
  const uint2 back = odd ? uint2{high, v3} : uint2{v2, high};
  const bool second = lane >= 2;
  const uint2 sent = second ? front : back;
  const std::uint32_t x = __shfl_xor_sync(0xffffffff, sent.x, 2);
  const std::uint32_t y = __shfl_xor_sync(0xffffffff, sent.y, 2);
  return second ? uint4{x, y, back.x, back.y} : uint4{front.x, front.y, x, y};
}

// Each lane of two holds two neighbouring outputs of two groups; afterwards each holds four of one:
// an even lane of the first group.
__device__ __forceinline__ float4 gather_half(float2 first, float2 second) {
  const bool odd = threadIdx.x % 2 != 0;
  const float x = __shfl_xor_sync(0xffffffff, odd ? first.x : second.x, 1);
  const float y = __shfl_xor_sync(0xffffffff, odd ? first.y : second.y, 1);
  return odd ? float4{x, y, second.x, second.y} : float4{first.x, first.y, x, y};
}

// What a thread's rows of a tile are, and where they go: 16 bytes at a time where `wide`.
template <int N, Epilogue E>
struct Writer {
  static constexpr bool kFloats = E == Epilogue::kF32 || E == Epilogue::kAddF32;
  static constexpr int kPiece = N / 16 < 8 ? N / 16 : 8;  // 16 bytes each
  static constexpr int kPieces = N / 16 / kPiece;  // of a row
  const LinearOut& out;
  int token;  // and 8 further
  int row;  // the tile's first output
  bool wide;

  __device__ Writer(const LinearOut& o, int first_token, int first_row)
      : out(o),
        token(first_token + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4),
        row(first_row) {
    constexpr int kPer16 = kFloats ? 4 : 8;
    wide = E != Epilogue::kSwigluTiles && first_row + N <= o.rows && o.stride % kPer16 == 0 &&
           reinterpret_cast<std::uintptr_t>(o.data) % 16 == 0;
  }

  __device__ bool has(int half) const { return token + half * 8 < out.num_rows; }
  __device__ float4* quad(int half, int i) const {
    const int lane = threadIdx.x % 4;
    return reinterpret_cast<float4*>(static_cast<float*>(out.data) +
                                     (token + half * 8) * out.stride + row +
                                     (2 * i + lane % 2) * 8 + lane / 2 * 4);
  }

  // What a piece of a row of kAddF32 holds before.
  __device__ void load(int piece, float4 (&old)[kPiece]) const {
    const int half = piece / kPieces;
    if (!wide || !has(half)) return;
#pragma unroll
    for (int i = 0; i < kPiece; ++i)
      old[i] = *quad(half, piece % kPieces * kPiece + i);
  }

  __device__ void sum(int piece, const float (&d)[N / 2], float4 (&old)[kPiece]) const {
    const int half = piece / kPieces;
#pragma unroll
    for (int i = 0; i < kPiece; ++i) {
      const int group = 2 * (piece % kPieces * kPiece + i);  // of 8 outputs, and the next
      const int at = 4 * group + 2 * half;
      const int r = row + group * 8 + threadIdx.x % 4 * 2;
      const float4 v =
          gather_half({with_bias(out, d[at], r), with_bias(out, d[at + 1], r + 1)},
                      {with_bias(out, d[at + 4], r + 8), with_bias(out, d[at + 5], r + 9)});
      if constexpr (E == Epilogue::kAddF32)
        old[i] = {__fadd_rn(old[i].x, v.x), __fadd_rn(old[i].y, v.y), __fadd_rn(old[i].z, v.z),
                  __fadd_rn(old[i].w, v.w)};
      else
        old[i] = v;
    }
  }

  __device__ void store_piece(int piece, const float4 (&values)[kPiece]) const {
    const int half = piece / kPieces;
    if (!has(half)) return;
#pragma unroll
    for (int i = 0; i < kPiece; ++i)
      put(out, quad(half, piece % kPieces * kPiece + i), values[i]);
  }

  __device__ void store_swiglu(int half, const float (&d)[N / 2]) const {
    if (!has(half)) return;
    const int width = out.rows / 2;
#pragma unroll
    for (int j = 0; j < N / 16; ++j) {  // columns 16j .. 16j+7 are gates, the next 8 their ups
      const int column = row / 2 + j * 8 + threadIdx.x % 4 * 2;
      if (column >= width) break;
      const std::uint32_t pair =
          ptx::pack_bf16(swiglu(d[8 * j + 2 * half], d[8 * j + 4 + 2 * half]),
                         swiglu(d[8 * j + 2 * half + 1], d[8 * j + 4 + 2 * half + 1]));
      put(out,
          reinterpret_cast<std::uint32_t*>(
              static_cast<Bf16*>(out.data) +
              tiles_index(token + half * 8, column, static_cast<int>(out.stride))),
          pair);
    }
  }

  __device__ void store_bf16(int half, const float (&d)[N / 2]) const {
    const int first = row + threadIdx.x % 4 * 2;
#pragma unroll
    for (int j = 0; j < N / 32; ++j) {
      std::uint32_t v[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = 4 * (4 * j + i) + 2 * half;
        const int r = first + (4 * j + i) * 8;
        v[i] = ptx::pack_bf16(with_bias(out, d[at], r), with_bias(out, d[at + 1], r + 1));
      }
      const uint4 group = gather_group(v[0], v[1], v[2], v[3]);
      if (has(half))
        *reinterpret_cast<uint4*>(static_cast<Bf16*>(out.data) + (token + half * 8) * out.stride +
                                  row + (4 * j + threadIdx.x % 4) * 8) = group;
    }
  }

  // `old`: what load(0, ...) brought.
  __device__ void store(const float (&d)[N / 2], float4 (&old)[kPiece]) const {
    if constexpr (E == Epilogue::kSwigluTiles) {
      store_swiglu(0, d);
      store_swiglu(1, d);
    } else if (!wide) {
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int j = 0; j < N / 8; ++j)
          if (has(half))
            store_pair<E>(out, token + half * 8, row + threadIdx.x % 4 * 2 + j * 8,
                          d[4 * j + 2 * half], d[4 * j + 2 * half + 1]);
    } else if constexpr (kFloats) {
#pragma unroll
      for (int piece = 0; piece < 2 * kPieces; ++piece) {
        sum(piece, d, old);
        float4 next[kPiece];  // on its way while this one is written
        if (E == Epilogue::kAddF32 && piece + 1 < 2 * kPieces) load(piece + 1, next);
        store_piece(piece, old);
#pragma unroll
        for (int i = 0; i < kPiece; ++i)
          old[i] = next[i];
      }
    } else {
      store_bf16(0, d);
      store_bf16(1, d);
    }
  }
};

template <int N, Epilogue E>
__global__ void __launch_bounds__(kThreads, 1) tile_kernel(const __grid_constant__ TileParams p) {
#if THAW_HOPPER
  using S = Shape<N>;
  extern __shared__ __align__(1024) unsigned char ring[];
  __shared__ __align__(8) std::uint64_t full[S::kStages];
  __shared__ __align__(8) std::uint64_t empty[S::kStages];
  if (threadIdx.x == 0) {
    for (int i = 0; i < S::kStages; ++i) {
      ptx::barrier_init(ptx::shared_address(&full[i]), 1);
      ptx::barrier_init(ptx::shared_address(&empty[i]), kRowTiles);
    }
    ptx::barrier_init_fence();
  }
  __syncthreads();
  ptx::let_next_kernel_start();
  int stage = 0;
  int phase = 0;
  const auto next_stage = [&] {
    if (++stage == S::kStages) {
      stage = 0;
      phase ^= 1;
    }
  };
  const int tiles = p.block_rows * p.block_cols;

  if (threadIdx.x < 128) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (threadIdx.x == 0) {
      const auto stage_at = [&](int s) { return ptx::shared_address(ring) + s * S::kStageBytes; };
      const auto bring_weight = [&](int col, int chunk) {
        const std::uint32_t barrier = ptx::shared_address(&full[stage]);
        // What lies outside of a tensor arrives as zeros, and counts.
        ptx::barrier_expect(barrier, S::kStageBytes);
        ptx::tensor_copy(stage_at(stage) + kRowTiles * kTileBytes, &p.weight, 0, chunk,
                         col * (N / kWeightGroup), barrier);
      };
      const auto bring_x = [&](int s, int row, int chunk) {
        ptx::tensor_copy(stage_at(s), &p.x, 0, chunk * 4, row * kRowTiles,
                         ptx::shared_address(&full[s]));
      };
      // Weights depend on no kernel: the first ones are asked for ahead of those before.
      const int ahead = min(S::kStages, p.chunks);
      const TilePlace begin = place_of(p, blockIdx.x);
      for (int c = 0; c < ahead; ++c, next_stage())
        bring_weight(begin.col, c);
      ptx::wait_for_previous_kernel();
      for (int c = 0; c < ahead; ++c)
        bring_x(c, begin.row, c);
      int first = ahead;
      for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x, first = 0) {
        const TilePlace place = place_of(p, tile);
        for (int c = first; c < p.chunks; ++c, next_stage()) {
          ptx::barrier_wait(ptx::shared_address(&empty[stage]), phase ^ 1);
          bring_weight(place.col, c);
          bring_x(stage, place.row, c);
        }
      }
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    // Which 64 rows of the block: the same in all threads of a warp, and known to be, so that what
    // follows from it is computed once a warp. The GPU runs this kernel at the limit of its power:
    // what lanes do not compute is time.
    const int group = __shfl_sync(0xffffffff, static_cast<int>(threadIdx.x) / 128, 0) - 1;
    const bool elected = threadIdx.x % 128 == 0;
    const auto release = [&](int s) {
      if (elected) ptx::barrier_arrive(ptx::shared_address(&empty[s]));
    };
    ptx::wait_for_previous_kernel();
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
      const TilePlace place = place_of(p, tile);
      const Writer<N, E> writer(p.out, place.row * kBlockRows + group * 64, place.col * N);
      float4 old[Writer<N, E>::kPiece];
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
      if (E == Epilogue::kAddF32) writer.load(0, old);  // while the last products run
      wgmma::wait<0>();
      release(previous);
      writer.store(d, old);
    }
  }
#endif
}

// A map of 8-byte words over [outer][middle][kUnit], all contiguous, that brings
// [outer_box][middle_box][kUnit] at a time.
CUtensorMap map_of(const void* data, int outer, int middle, int outer_box, int middle_box) {
  CUtensorMap map;
  const cuuint64_t sizes[] = {kUnit, static_cast<cuuint64_t>(middle),
                              static_cast<cuuint64_t>(outer)};
  const cuuint64_t strides[] = {kUnit * 8, static_cast<cuuint64_t>(middle) * kUnit * 8};
  const cuuint32_t box[] = {kUnit, static_cast<cuuint32_t>(middle_box),
                            static_cast<cuuint32_t>(outer_box)};
  const cuuint32_t steps[] = {1, 1, 1};
  thaw::cuda::check_driver(
      thaw::cuda::driver().tensor_map(
          &map, CU_TENSOR_MAP_DATA_TYPE_INT64, 3, const_cast<void*>(data), sizes, strides, box,
          steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_NONE,
          CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE),
      "linear: tensor map");
  return map;
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
void launch(const LinearParams& params, int multiprocessors, cudaStream_t stream) {
  using S = Shape<N>;
  const TiledWeight& weight = params.weight;
  TileParams p{};
  p.chunks = weight.cols / kChunk;
  p.weight =
      map_of(weight.data, ceil_div(weight.rows, kWeightGroup), p.chunks, N / kWeightGroup, 1);
  p.x = map_of(params.x.data, ceil_div(params.num_rows, kTokenTile), 4 * p.chunks, kRowTiles, 4);
  p.out = {params.out, params.out_stride, params.bias, weight.rows, params.num_rows};
  if (params.epilogue == Epilogue::kSwigluTiles && params.out_stride == 0)
    p.out.stride = weight.rows / 2;
  std::ranges::copy(params.copies, p.out.copies);
  p.out.num_copies = static_cast<int>(params.copies.size());
  p.block_rows = ceil_div(params.num_rows, kBlockRows);
  p.block_cols = ceil_div(weight.rows, N);
  launch_early(kernel_for<N>(params.epilogue),
               {std::min(p.block_rows * p.block_cols, multiprocessors), kThreads,
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
    launch<256>(params, blocks, stream.get());
  else if (middle <= narrow)
    launch<128>(params, blocks, stream.get());
  else
    launch<64>(params, blocks, stream.get());
}

}  // namespace thaw::ops::cuda
