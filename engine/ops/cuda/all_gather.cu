#include <algorithm>
#include <string>

#include "engine/base/error.h"
#include "engine/ops/cuda/all_gather.h"
#include "engine/ops/cuda/exchange.cuh"
#include "engine/ops/cuda/kernels.h"
#include "engine/ops/cuda/launch.cuh"
#include "engine/ops/cuda/ptx.cuh"

namespace thaw::ops::cuda {
namespace {

constexpr int kPacketThreads = 256;
constexpr int kPacketData = 8;  // bytes that a pair of packets carries
constexpr int kBulkThreads = 512;
constexpr int kBulkUnroll = 8;
constexpr int kChunkBytes = kTokenTile * kChunk * 2;  // of tiles: 64 rows, 64 columns

void require(bool holds, const char* what, std::int64_t value, const char* right) {
  if (!holds)
    throw Exception(make_error(Errc::kInvalidArgument,
                               std::string(what) + " is " + std::to_string(value) + "; " + right));
}

// A part as one sequence of words.
struct Words {
  int per_unit;
  int per_run;
  int count;
};

__host__ __device__ inline Words words_of(const GatherParams& p, int rank, int word_bytes) {
  const int per_unit = p.unit_bytes / word_bytes;
  const int per_run = (p.bounds[rank + 1] - p.bounds[rank]) * per_unit;
  return {per_unit, per_run, per_run * p.runs};
}

// Where a word of a rank's part lies, from the matrix's start.
__device__ __forceinline__ std::size_t place_of(const GatherParams& p, const Words& words, int rank,
                                                int index, int word_bytes) {
  const int run = index / words.per_run;
  const int rest = index - run * words.per_run;
  const int unit = rest / words.per_unit;
  return run * p.run_stride + static_cast<std::size_t>(p.bounds[rank] + unit) * p.unit_stride +
         static_cast<std::size_t>(rest - unit * words.per_unit) * word_bytes;
}

__device__ __forceinline__ const std::byte* source_of(const GatherParams& p, const Words& words,
                                                      int index, int word_bytes) {
  const int run = index / words.per_run;
  const int rest = index - run * words.per_run;
  const int unit = rest / words.per_unit;
  return p.source + run * p.source_stride + static_cast<std::size_t>(unit) * p.unit_stride +
         static_cast<std::size_t>(rest - unit * words.per_unit) * word_bytes;
}

__global__ void __launch_bounds__(kPacketThreads)
    packet_kernel(const __grid_constant__ GatherParams p) {
  ptx::let_next_kernel_start();
  const ExchangeView& view = p.exchange;
  const int rank = view.rank;
  std::byte* const matrix = view.regions[rank] + p.offset;
  const std::uint32_t number = peer::exchanges_done(view) + p.ordinal;
  ptx::wait_for_previous_kernel();
  const int step = static_cast<int>(gridDim.x) * kPacketThreads;
  const int thread = static_cast<int>(blockIdx.x) * kPacketThreads + threadIdx.x;
  const Words own = words_of(p, rank, kPacketData);
  for (int i = thread; i < own.count && !p.sent; i += step) {
    std::byte* const in_place = matrix + place_of(p, own, rank, i, kPacketData);
    const uint2 value = *reinterpret_cast<const uint2*>(
        p.source == nullptr ? in_place : source_of(p, own, i, kPacketData));
    for (int hop = 1; hop < view.size; ++hop)
      peer::store_packets(peer::landing(view, (rank + hop) % view.size, rank, number) +
                              static_cast<std::size_t>(i) * 16,
                          value.x, value.y, number);
    if (p.source != nullptr) *reinterpret_cast<uint2*>(in_place) = value;
  }
  for (int hop = 1; hop < view.size; ++hop) {
    const int from = (rank + hop) % view.size;
    const Words words = words_of(p, from, kPacketData);
    const std::byte* const landed = peer::landing(view, rank, from, number);
    for (int i = thread; i < words.count; i += step)
      *reinterpret_cast<uint2*>(matrix + place_of(p, words, from, i, kPacketData)) =
          peer::load_packets(landed + static_cast<std::size_t>(i) * 16, number, view, from);
  }
}

// W: uint4, or a single word where the matrix is not aligned for more.
template <typename W>
__global__ void __launch_bounds__(kBulkThreads)
    bulk_kernel(const __grid_constant__ GatherParams p) {
  ptx::let_next_kernel_start();
  constexpr int kWord = sizeof(W);
  const ExchangeView& view = p.exchange;
  const int rank = view.rank;
  const std::uint32_t number = peer::exchanges_done(view) + p.ordinal;
  ptx::wait_for_previous_kernel();
  const Words own = words_of(p, rank, kWord);
  const int step = static_cast<int>(gridDim.x) * kBulkThreads;
  for (int i = static_cast<int>(blockIdx.x) * kBulkThreads + threadIdx.x; i < own.count;
       i += step * kBulkUnroll) {
    W values[kBulkUnroll];
    std::size_t places[kBulkUnroll];
#pragma unroll
    for (int u = 0; u < kBulkUnroll; ++u) {
      const int index = i + u * step;
      if (index >= own.count) break;
      places[u] = p.offset + place_of(p, own, rank, index, kWord);
      values[u] = *reinterpret_cast<const W*>(
          p.source == nullptr ? view.regions[rank] + places[u] : source_of(p, own, index, kWord));
    }
    for (int hop = p.source == nullptr ? 1 : 0; hop < view.size; ++hop) {
      std::byte* const region = view.regions[(rank + hop) % view.size];
#pragma unroll
      for (int u = 0; u < kBulkUnroll; ++u)
        if (i + u * step < own.count) *reinterpret_cast<W*>(region + places[u]) = values[u];
    }
  }
  // The barrier brings the block's stores before the fence, the fence before the flag.
  __syncthreads();
  if (threadIdx.x >= static_cast<unsigned>(view.size - 1)) return;
  const int other = (rank + 1 + static_cast<int>(threadIdx.x)) % view.size;
  const auto flag = [&](int at_rank, int from_rank) {
    return reinterpret_cast<std::uint32_t*>(
        view.regions[at_rank] +
        (static_cast<std::size_t>(from_rank) * kFlagBlocks + blockIdx.x) * kFlagBytes);
  };
  __threadfence_system();
  peer::store_release(flag(other, rank), number);
  peer::Patience patience(view, other);
  // A peer may be one exchange ahead, and have said so.
  while (static_cast<std::int32_t>(peer::load_acquire(flag(rank, other)) - number) < 0 &&
         patience.wait_on()) {
  }
}

__global__ void end_round_kernel(std::uint32_t* counter, std::uint32_t num_exchanges) {
  // Nothing of the next round starts before this has ended: its kernels read the counter ahead of
  // their wait for those before them.
  ptx::wait_for_previous_kernel();
  *counter += num_exchanges;
  __threadfence();
}

int largest_part(const GatherParams& p, int word_bytes) {
  int words = 0;
  for (int rank = 0; rank < p.exchange.size; ++rank)
    words = std::max(words, words_of(p, rank, word_bytes).count);
  return words;
}

bool aligned(const GatherParams& p, int bytes) {
  const auto unit = static_cast<std::size_t>(bytes);
  return p.unit_bytes % bytes == 0 && p.unit_stride % bytes == 0 && p.run_stride % unit == 0 &&
         p.offset % unit == 0 && p.source_stride % unit == 0 &&
         reinterpret_cast<std::uintptr_t>(p.source) % unit == 0;
}

template <typename W>
void launch_bulk(const GatherParams& p, cudaStream_t stream) {
  // The same on every rank, whatever its own part: block b waits for block b.
  const int blocks =
      std::clamp(ceil_div(largest_part(p, sizeof(W)), kBulkThreads * 2), 1, kFlagBlocks);
  launch_early(&bulk_kernel<W>, {blocks, kBulkThreads}, stream, "all_gather (bulk)", p);
}

void check_bounds(const GatherParams& p) {
  require(p.exchange.size >= 1 && p.exchange.size <= kMostRanks, "all_gather: size",
          p.exchange.size, "it must be 1 to 8");
  require(p.ordinal > 0, "all_gather: ordinal", p.ordinal, "it must be at least 1");
  require(p.unit_bytes >= 0 && p.unit_bytes % 4 == 0, "all_gather: unit_bytes", p.unit_bytes,
          "it must be a multiple of 4");
  for (int rank = 0; rank < p.exchange.size; ++rank)
    require(p.bounds[rank] <= p.bounds[rank + 1], "all_gather: bounds", p.bounds[rank + 1],
            "they must ascend");
}

void set_bounds(GatherParams& p, std::span<const int> bounds, int unit) {
  require(static_cast<int>(bounds.size()) == p.exchange.size + 1, "all_gather: bounds.size",
          static_cast<std::int64_t>(bounds.size()), "it must be one more than ranks");
  for (std::size_t i = 0; i < bounds.size(); ++i) {
    require(bounds[i] % unit == 0, "all_gather: a bound", bounds[i],
            "it must be a multiple of the unit");
    p.bounds[i] = bounds[i] / unit;
  }
}

}  // namespace

GatherParams gather_of_rows(const Exchange& exchange, std::uint32_t ordinal, float* matrix,
                            int num_rows, int cols, std::span<const int> bounds) {
  GatherParams p;
  p.exchange = exchange.view();
  p.ordinal = ordinal;
  p.offset = exchange.offset_of(matrix);
  p.runs = num_rows;
  p.run_stride = static_cast<std::size_t>(cols) * sizeof(float);
  const bool by_four =
      cols % 4 == 0 && std::ranges::all_of(bounds, [](int b) { return b % 4 == 0; });
  const int unit = by_four ? 4 : 1;
  p.unit_bytes = p.unit_stride = unit * static_cast<int>(sizeof(float));
  set_bounds(p, bounds, unit);
  return p;
}

GatherParams gather_of_tiles(const Exchange& exchange, std::uint32_t ordinal, Tiles part,
                             Tiles matrix, int num_rows, std::span<const int> bounds) {
  GatherParams p;
  p.exchange = exchange.view();
  p.ordinal = ordinal;
  p.offset = exchange.offset_of(matrix.data);
  p.source = reinterpret_cast<const std::byte*>(part.data);
  p.source_stride = static_cast<std::size_t>(part.cols) * kTokenTile * sizeof(Bf16);
  p.runs = ceil_div(num_rows, kTokenTile);
  p.run_stride = static_cast<std::size_t>(matrix.cols) * kTokenTile * sizeof(Bf16);
  p.unit_stride = kChunkBytes;
  // Rows of a chunk follow one another by eights: of a single tile only those that exist.
  p.unit_bytes = num_rows < kTokenTile ? ceil_div(num_rows, 8) * 8 * kChunk * 2 : kChunkBytes;
  set_bounds(p, bounds, kChunk);
  require(part.cols == bounds[static_cast<std::size_t>(exchange.rank()) + 1] -
                           bounds[static_cast<std::size_t>(exchange.rank())],
          "all_gather: part.cols", part.cols, "it must be the rank's columns");
  return p;
}

bool packets_serve(int num_rows, std::span<const int> bounds) {
  if (num_rows > kTokenTile) return false;
  const std::size_t rows = static_cast<std::size_t>(ceil_div(num_rows, 8)) * 8;
  for (std::size_t rank = 0; rank + 1 < bounds.size(); ++rank) {
    const auto cols = static_cast<std::size_t>(bounds[rank + 1] - bounds[rank]);
    if (rows * cols * sizeof(Bf16) * 2 > kMostPacketBytes) return false;
  }
  return true;
}

void prepare_gather_kernels() {
  prepare_kernel(&packet_kernel, 0, "all_gather");
  prepare_kernel(&bulk_kernel<uint4>, 0, "all_gather");
  prepare_kernel(&bulk_kernel<std::uint32_t>, 0, "all_gather");
}

void all_gather(const CudaDevice& /*device*/, const GatherParams& params,
                thaw::cuda::StreamView stream) {
  check_bounds(params);
  const int pairs = aligned(params, kPacketData) ? largest_part(params, kPacketData) : 0;
  if (pairs > 0 && static_cast<std::size_t>(pairs) * 16 <= kMostPacketBytes) {
    launch_early(&packet_kernel, {std::min(ceil_div(pairs, kPacketThreads), 128), kPacketThreads},
                 stream.get(), "all_gather (packets)", params);
  } else if (params.sent) {
    require(false, "all_gather: sent", 1, "what is sent are packets");
  } else if (aligned(params, 16)) {
    launch_bulk<uint4>(params, stream.get());
  } else {
    launch_bulk<std::uint32_t>(params, stream.get());
  }
}

void end_round(const CudaDevice& /*device*/, const ExchangeView& exchange,
               std::uint32_t num_exchanges, thaw::cuda::StreamView stream) {
  if (num_exchanges == 0) return;
  auto* const counter =
      reinterpret_cast<std::uint32_t*>(exchange.regions[exchange.rank] + kCounterAt);
  launch_early(&end_round_kernel, {}, stream.get(), "end_round", counter, num_exchanges);
}

void refresh_exchange(const CudaDevice& device, const Exchange& exchange,
                      thaw::cuda::StreamView stream) {
  GatherParams barrier;  // of nothing
  barrier.exchange = exchange.view();
  barrier.ordinal = 1;
  all_gather(device, barrier, stream);
  // Between two exchanges that use flags alone no peer stores packets.
  thaw::cuda::check(
      cudaMemsetAsync(exchange.view().regions[exchange.rank()] + kLandingAt, 0,
                      2 * static_cast<std::size_t>(exchange.size()) * kMostPacketBytes,
                      stream.get()),
      "clear packets");
  barrier.ordinal = 2;
  all_gather(device, barrier, stream);
  end_round(device, exchange.view(), 2, stream);
}

}  // namespace thaw::ops::cuda
