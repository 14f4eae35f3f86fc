#include <algorithm>
#include <cmath>
#include <iterator>

#include "engine/cuda/driver.h"
#include "engine/ops/cuda/kernels.h"
#include "engine/ops/cuda/launch.cuh"
#include "engine/ops/cuda/linear_tile_writer.cuh"
#include "engine/ops/cuda/wgmma.cuh"

// Linear for many rows: tensor cores at full rate.
//
// A block computes tiles of R x 64 rows of x by N outputs: a warpgroup for every 64 rows, and one
// more of which one thread keeps a ring of K chunks full. x is the M operand, the weight the N
// operand of wgmma, both as they lie in memory: tensor maps see their core matrices as rows of 2
// KiB, so that one instruction brings all of a chunk's weights. K is stepped by 16 in order in one
// accumulator, so each output is the chain of the streaming kernel.
//
// With many rows the GPU's power is what bounds this kernel, and reading from the second-level
// cache takes much of it. Large tiles read less for each product: the largest are as large as
// accumulators have registers. Large tiles also come in pairs, next to one another, to the two
// blocks of a cluster, which bring in turns what both of them read: the same weights or, in a last
// row of tiles that has no other, the same rows of x.

// Below sm_90 the kernel is empty, and what it uses is unused.
#pragma nv_diag_suppress 177

namespace thaw::ops::cuda {
namespace {

constexpr int kTileBytes = kTokenTile * kChunk * 2;  // 8 KiB: 64 rows of x, one chunk
constexpr int kGroupBytes = kWeightGroup * kChunk * 2;  // 2 KiB: 16 outputs, one chunk
constexpr int kUnit = 256;  // words of 8 bytes, what tensor maps count in: a group's chunk
constexpr int kBandRows = 2048;  // that are worked through column by column
constexpr int kLeading = 128;  // next core matrix along K
constexpr int kStride = 1024;  // next 8 rows

// Blocks of a cluster: one by itself, or a pair.
enum class Cluster { kOne = 1, kPair = 2 };

template <int R, int N, Cluster C>
struct Shape {
  static constexpr int kCluster = static_cast<int>(C);
  static constexpr int kThreads = 128 * (R + 1);
  static constexpr int kRegisters = R == 2 ? 240 : 160;  // of a thread that multiplies
  static constexpr int kRows = R * kTokenTile;
  static constexpr int kStageBytes = R * kTileBytes + N / kWeightGroup * kGroupBytes;
  static constexpr int kStages = 224 * 1024 / kStageBytes;
};

struct TileParams {
  CUtensorMap weight;  // [groups][chunks][kUnit]
  CUtensorMap x;  // [tiles of 64 rows][4 chunks][kUnit]
  LinearOut out;
  RopeAndStoreParams heads;  // LinearParams::heads; without qkv: none
  int chunks;  // of K
  int block_rows;  // tiles of R x 64 rows
  int block_cols;  // tiles of N outputs
  int tiles;  // that a cluster takes at a time: of one block or of a pair
  int band;  // rows of those that are worked through column by column
};

struct TilePlace {
  int row;  // in tiles of R x 64 rows
  int col;  // in tiles of N
  bool shares_x;  // of a pair: both blocks have the same rows, else the same columns
};

// Bands of row tiles, column by column: what the blocks work on at a time is then about as high as
// wide, and the second-level cache brings the least.
template <Cluster C>
__device__ __forceinline__ TilePlace place_of(const TileParams& p, int tile, int rank) {
  const int rows = p.block_rows / static_cast<int>(C);
  if (C == Cluster::kPair && tile >= rows * p.block_cols)
    return {p.block_rows - 1, (tile - rows * p.block_cols) * 2 + rank, true};
  const int band = tile / (p.band * p.block_cols);
  const int rest = tile - band * p.band * p.block_cols;
  const int height = min(p.band, rows - band * p.band);
  const int row = band * p.band + rest % height;
  return {C == Cluster::kPair ? row * 2 + rank : row, rest / height, false};
}

// What a cluster takes at a time, of so many tiles.
template <Cluster C>
int tiles_of(int block_rows, int block_cols) {
  if (C == Cluster::kOne) return block_rows * block_cols;
  return block_rows / 2 * block_cols + block_rows % 2 * ceil_div(block_cols, 2);
}

// One step of K. For blocks of 512 threads ptxas allows an instruction 128 registers, whatever
// setmaxnreg says: too few for 256 outputs at once.
template <int R, int Accumulators>
__device__ __forceinline__ void multiply(float (&d)[Accumulators], std::uint64_t a,
                                         std::uint64_t b) {
  if constexpr (R == 3) {
    constexpr int kHalf = Accumulators / 2;
    using Half = float(&)[kHalf];
    wgmma::product(reinterpret_cast<Half>(d[0]), a, b);
    wgmma::product(reinterpret_cast<Half>(d[kHalf]), a,
                   wgmma::advance(b, 2 * kHalf / kWeightGroup * kGroupBytes));
  } else {
    wgmma::product(d, a, b);
  }
}

template <int R, int N, Cluster C, Epilogue E>
__global__ void __launch_bounds__(Shape<R, N, C>::kThreads, 1)
    tile_kernel(const __grid_constant__ TileParams p) {
#if THAW_HOPPER
  using S = Shape<R, N, C>;
  extern __shared__ __align__(1024) unsigned char ring[];
  __shared__ __align__(8) std::uint64_t full[S::kStages];
  __shared__ __align__(8) std::uint64_t empty[S::kStages];
  if (threadIdx.x == 0) {
    for (int i = 0; i < S::kStages; ++i) {
      ptx::barrier_init(ptx::shared_address(&full[i]), 1);
      ptx::barrier_init(ptx::shared_address(&empty[i]), R * S::kCluster);
    }
    ptx::barrier_init_fence();
  }
  const int rank = S::kCluster == 1 ? 0 : ptx::cluster_rank();
  if (S::kCluster == 1)
    __syncthreads();
  else
    ptx::cluster_wait();
  ptx::let_next_kernel_start();
  int stage = 0;
  int phase = 0;
  const auto next_stage = [&] {
    if (++stage == S::kStages) {
      stage = 0;
      phase ^= 1;
    }
  };
  using W = TileWriter<R, N, E>;
  const int first_tile = blockIdx.x / S::kCluster;
  const int step = gridDim.x / S::kCluster;

  if (threadIdx.x < 128) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (threadIdx.x == 0) {
      const auto stage_at = [&](int s) { return ptx::shared_address(ring) + s * S::kStageBytes; };
      // What both blocks read, each brings for every other chunk.
      const auto bring = [&](bool shared, std::uint32_t to, const CUtensorMap& map, int chunk,
                             int at, int chunk_units, std::uint32_t barrier) {
        if (!shared)
          ptx::tensor_copy(to, &map, 0, chunk * chunk_units, at, barrier);
        else if (chunk % 2 == rank)
          ptx::tensor_copy_shared(to, &map, 0, chunk * chunk_units, at, barrier, 0b11);
      };
      const auto bring_weight = [&](const TilePlace& place, int chunk) {
        const std::uint32_t barrier = ptx::shared_address(&full[stage]);
        // What lies outside of a tensor arrives as zeros, and counts.
        ptx::barrier_expect(barrier, S::kStageBytes);
        bring(C == Cluster::kPair && !place.shares_x, stage_at(stage) + R * kTileBytes, p.weight,
              chunk, place.col * (N / kWeightGroup), 1, barrier);
      };
      const auto bring_x = [&](int s, const TilePlace& place, int chunk) {
        bring(place.shares_x, stage_at(s), p.x, chunk, place.row * R, 4,
              ptx::shared_address(&full[s]));
      };
      // Weights depend on no kernel: the first ones are asked for ahead of those before.
      const int ahead = min(S::kStages, p.chunks);
      const TilePlace begin = place_of<C>(p, first_tile, rank);
      for (int c = 0; c < ahead; ++c, next_stage())
        bring_weight(begin, c);
      ptx::wait_for_previous_kernel();
      for (int c = 0; c < ahead; ++c)
        bring_x(c, begin, c);
      int first = ahead;
      for (int tile = first_tile; tile < p.tiles; tile += step, first = 0) {
        const TilePlace place = place_of<C>(p, tile, rank);
        for (int c = first; c < p.chunks; ++c, next_stage()) {
          ptx::barrier_wait(ptx::shared_address(&empty[stage]), phase ^ 1);
          bring_weight(place, c);
          bring_x(stage, place, c);
        }
      }
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(S::kRegisters));
    // Which 64 rows of the block: the same in all threads of a warp, and known to be, so that what
    // follows from it is computed once a warp. The GPU runs this kernel at the limit of its power:
    // what lanes do not compute is time.
    const int group = __shfl_sync(0xffffffff, static_cast<int>(threadIdx.x) / 128, 0) - 1;
    const bool elected = threadIdx.x % 128 == 0;
    const std::uint32_t other =
        S::kCluster == 1 ? 0 : ptx::address_in(rank ^ 1, ptx::shared_address(empty));
    const auto release = [&](int s) {
      if (!elected) return;
      ptx::barrier_arrive(ptx::shared_address(&empty[s]));
      if (S::kCluster > 1) ptx::barrier_arrive_in(other + s * sizeof(empty[0]));
    };
    ptx::wait_for_previous_kernel();
    for (int tile = first_tile; tile < p.tiles; tile += step) {
      float d[N / 2];
#pragma unroll
      for (int i = 0; i < N / 2; ++i)
        d[i] = 0.0F;
      int previous = 0;
      for (int c = 0; c < p.chunks; ++c) {
        ptx::barrier_wait(ptx::shared_address(&full[stage]), phase);
        const std::uint32_t at = ptx::shared_address(ring) + stage * S::kStageBytes;
        const std::uint64_t a = wgmma::descriptor(at + group * kTileBytes, kLeading, kStride);
        const std::uint64_t b = wgmma::descriptor(at + R * kTileBytes, kLeading, kStride);
        wgmma::fence();
#pragma unroll
        for (int k = 0; k < kChunk / 16; ++k)
          multiply<R>(d, wgmma::advance(a, k * 2 * kLeading), wgmma::advance(b, k * 2 * kLeading));
        wgmma::commit();
        // One chunk's products stay in flight; the chunk before is done with its stage.
        wgmma::wait<1>();
        if (c > 0) release(previous);
        previous = stage;
        next_stage();
      }
      const TilePlace place = place_of<C>(p, tile, rank);
      const W writer(p.out, p.heads, (place.row * R + group) * kTokenTile, place.col * N);
      float4 old[W::kPiece];
      if (W::kLoadsAhead) writer.load(0, old);  // while the last products run
      wgmma::wait<0>();
      release(previous);
      writer.store(d, old);
    }
  }
  if (S::kCluster > 1) {
    __syncwarp();
    ptx::cluster_wait();  // while the other block may still arrive at this one's barriers
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

template <int R, int N, Cluster C>
auto kernel_for(Epilogue epilogue) {
  return with_epilogue(epilogue, [&]<Epilogue E>() { return &tile_kernel<R, N, C, E>; });
}

template <int R, int N, Cluster C>
void prepare() {
  using S = Shape<R, N, C>;
  for (const Epilogue epilogue : kAllEpilogues)
    prepare_kernel(kernel_for<R, N, C>(epilogue), S::kStages * S::kStageBytes,
                   "shared memory of the tile kernel");
}

template <int R, int N, Cluster C>
void launch(const LinearParams& params, int blocks, cudaStream_t stream) {
  using S = Shape<R, N, C>;
  const TiledWeight& weight = params.weight;
  TileParams p{};
  p.chunks = weight.cols / kChunk;
  p.weight =
      map_of(weight.data, ceil_div(weight.rows, kWeightGroup), p.chunks, N / kWeightGroup, 1);
  p.x = map_of(params.x.data, ceil_div(params.num_rows, kTokenTile), 4 * p.chunks, R, 4);
  p.out = {params.out, params.out_stride, params.bias, weight.rows, params.num_rows};
  if (params.epilogue == Epilogue::kSwigluTiles && params.out_stride == 0)
    p.out.stride = weight.rows / 2;
  std::ranges::copy(params.copies, p.out.copies);
  p.out.num_copies = static_cast<int>(params.copies.size());
  if (params.heads != nullptr) p.heads = *params.heads;
  p.block_rows = ceil_div(params.num_rows, S::kRows);
  p.block_cols = ceil_div(weight.rows, N);
  p.tiles = tiles_of<C>(p.block_rows, p.block_cols);
  // Bands about as high as one another: a low one at the end would read all weights for few rows.
  const int bands = std::max(1, (params.num_rows + kBandRows / 2) / kBandRows);
  p.band = std::max(1, ceil_div(p.block_rows / S::kCluster, bands));
  const int clusters = std::min(p.tiles, blocks / S::kCluster);
  launch_early(kernel_for<R, N, C>(params.epilogue),
               {clusters * S::kCluster, S::kThreads,
                static_cast<std::size_t>(S::kStages) * S::kStageBytes, S::kCluster},
               stream, "linear (tile)", p);
}

struct TileSize {
  void (*launch)(const LinearParams&, int, cudaStream_t);
  int (*tiles)(int, int);
  int rows;
  int width;
  int cluster;
  double rate;  // measured, of the products of one block
};

template <int R, int N, Cluster C>
constexpr TileSize tile_size(double rate) {
  return {launch<R, N, C>, tiles_of<C>, R * kTokenTile, N, static_cast<int>(C), rate};
}

// Large tiles read less for each product, small ones fill the device where there are few.
constexpr TileSize kSizes[] = {
    tile_size<3, 256, Cluster::kPair>(1.04), tile_size<2, 256, Cluster::kPair>(1.0),
    tile_size<2, 128, Cluster::kOne>(0.85), tile_size<2, 64, Cluster::kOne>(0.6)};
static_assert(std::size(kSizes) == kTileSizes);

}  // namespace

void prepare_tile_kernels() {
  prepare<2, 64, Cluster::kOne>();
  prepare<2, 128, Cluster::kOne>();
  prepare<2, 256, Cluster::kPair>();
  prepare<3, 256, Cluster::kPair>();
}

void linear_tile_of(int size, const CudaDevice& device, const LinearParams& params,
                    thaw::cuda::StreamView stream) {
  kSizes[size].launch(params, device.multiprocessors(), stream.get());
}

void linear_tile(const CudaDevice& device, const LinearParams& params,
                 thaw::cuda::StreamView stream) {
  // Cost of a size: rounds of the busiest block, each as long as its tile over the rate.
  const int blocks = device.multiprocessors();
  const auto cost = [&](const TileSize& size) -> double {
    // A head is stored by the block that computed all of it.
    if (params.heads != nullptr && size.width % params.heads->shape.head_dim != 0) return INFINITY;
    const int tiles =
        size.tiles(ceil_div(params.num_rows, size.rows), ceil_div(params.weight.rows, size.width));
    return ceil_div(tiles, blocks / size.cluster) * size.rows * size.width / size.rate;
  };
  std::ranges::min_element(kSizes, {}, cost)->launch(params, blocks, stream.get());
}

}  // namespace thaw::ops::cuda
