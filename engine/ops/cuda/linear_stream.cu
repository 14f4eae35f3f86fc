#include <algorithm>

#include "engine/ops/cuda/exchange.cuh"
#include "engine/ops/cuda/kernels.h"
#include "engine/ops/cuda/launch.cuh"
#include "engine/ops/cuda/linear_epilogue.cuh"

// Linear for few rows: the weights cross the memory bus once, and that is all the time there is.
//
// A block owns a range of row groups (16 outputs each) and works on R of them at a time, one warp
// each, over the whole of K: no split of K, so the order of every sum is that of its one chain.
// Three more warps are producers of weights: a lane of each keeps its part of a ring of some 200
// KiB filling with bulk copies, some of it on its way at a time. Weights are read before the kernel
// waits for its predecessor: they depend on nothing, and fill the ring while small kernels run. A
// fourth warp copies x. The weights are the M operand of mma.sync, the rows of x its N = 8 columns.

namespace thaw::ops::cuda {
namespace {

constexpr int kMaxWarps = 8;  // consumers a block
constexpr int kProducers = 3;  // warps of copies of weights, each with its share; one more copies x
constexpr int kMaxStages = 16;
constexpr int kRingBytes = 224 * 1024;
constexpr int kShortStage = 2;  // chunks
constexpr int kLongStage = 4;
constexpr int kMostShortBytes = 28 * 1024;  // a short stage of fewer becomes a long one
// Bytes on their way to a block at a time: what the latency of the memory asks for twice over. Were
// it the whole ring, the queue would be 9 us long, and every small read of the kernels between two
// linears would wait in it.
constexpr int kWindowBytes = 64 * 1024;
constexpr int kWeightBytes = kWeightGroup * kChunk * 2;  // 2 KiB: one group's chunk
constexpr int kGroupBytes = 8 * kChunk * 2;  // 1 KiB: one chunk of 8 rows of x
constexpr int kTileChunkBytes = kTokenTile * kChunk * 2;  // 8 KiB: a chunk of a tile of x

struct StreamParams {
  const char* weight;
  const char* x;
  LinearOut out;
  int first_row;  // of x, in out
  int groups;  // row groups of the weight
  int chunks;  // of K
  int warps;  // consumers
  int stages;
  int window;  // stages of weights that may be on their way
  int early_window;  // the same until the kernels ahead are done
  ExchangeView exchange;  // of more than one rank: outputs are sent
  std::uint32_t ordinal;
};

// Four bytes of the own part to every other rank, at their place among an exchange's packets.
__device__ __forceinline__ void send(const StreamParams& p, int place, std::uint32_t data,
                                     std::uint32_t number) {
  const ExchangeView& view = p.exchange;
  for (int hop = 1; hop < view.size; ++hop)
    peer::store_packet(peer::landing(view, (view.rank + hop) % view.size, view.rank, number) +
                           static_cast<std::size_t>(place) * 8,
                       data, number);
}

// What an output of kAddF32 holds before, read ahead of the product: at its end it would cost the
// latency of the memory once more.
template <int NT>
__device__ __forceinline__ void load_residual(const StreamParams& p, int group,
                                              float (&old)[NT][4]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int n = 0; n < NT; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = group * 16 + lane / 4 + i / 2 * 8;
      const int token = n * 8 + lane % 4 * 2 + i % 2;
      if (row < p.out.rows && token < p.out.num_rows)
        old[n][i] =
            static_cast<const float*>(p.out.data)[(p.first_row + token) * p.out.stride + row];
    }
}

__device__ __forceinline__ float with_bias(const LinearOut& out, float product, int row) {
  return out.bias == nullptr ? product : __fadd_rn(product, out.bias[row]);
}

template <Epilogue E, int NT>
__device__ __forceinline__ void store(const StreamParams& p, int group, const float (&d)[NT][4],
                                      const float (&old)[NT][4], std::uint32_t number) {
  const int lane = threadIdx.x % 32;
  const LinearOut& out = p.out;
  const bool sends = p.exchange.size > 1;
#pragma unroll
  for (int n = 0; n < NT; ++n) {
    if constexpr (E == Epilogue::kF32 || E == Epilogue::kAddF32) {
      // d: rows lane / 4 and + 8, tokens 2 (lane % 4) and + 1.
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = group * 16 + lane / 4 + i / 2 * 8;
        const int token = n * 8 + lane % 4 * 2 + i % 2;
        if (row >= out.rows || token >= out.num_rows) continue;
        const float value = with_bias(out, d[n][i], row);
        const float result = E == Epilogue::kAddF32 ? __fadd_rn(old[n][i], value) : value;
        static_cast<float*>(out.data)[(p.first_row + token) * out.stride + row] = result;
        if (E == Epilogue::kAddF32 && sends)
          send(p, (p.first_row + token) * out.rows + row, __float_as_uint(result), number);
      }
    } else {
      // Transposed in registers, lane holds token lane / 4 and two neighbouring outputs.
      const int token = n * 8 + lane / 4;
      const int column = lane % 4 * 2;
      if constexpr (E == Epilogue::kSwigluTiles) {
        // Rows 0-7 of a group are gates, 8-15 their ups.
        const std::uint32_t pair = ptx::transpose_matrix(
            ptx::pack_bf16(swiglu(d[n][0], d[n][2]), swiglu(d[n][1], d[n][3])));
        const int at_column = group * 8 + column;
        if (group * 8 >= out.rows / 2) continue;
        if (token < out.num_rows) {
          Bf16* at = static_cast<Bf16*>(out.data) +
                     tiles_index(p.first_row + token, at_column, static_cast<int>(out.stride));
          *reinterpret_cast<std::uint32_t*>(at) = pair;
        }
        // A chunk's rows travel by eights, those that are none with them.
        const int rows = ceil_div(out.num_rows, 8) * 8;
        if (sends && token < rows)
          send(p,
               at_column / kChunk * (rows * kChunk / 2) + token / 8 * (8 * kChunk / 2) +
                   at_column % kChunk / 8 * 32 + token % 8 * 4 + at_column % 8 / 2,
               pair, number);
      } else {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int own = min(group * 16 + half * 8 + lane / 4, out.rows - 1);
          const std::uint32_t pair = ptx::transpose_matrix(ptx::pack_bf16(
              with_bias(out, d[n][half * 2], own), with_bias(out, d[n][half * 2 + 1], own)));
          const int row = group * 16 + half * 8 + column;
          if (token >= out.num_rows) continue;
          Bf16* at = static_cast<Bf16*>(out.data) + (p.first_row + token) * out.stride + row;
          if (row + 1 < out.rows && (reinterpret_cast<std::uintptr_t>(at) & 3) == 0) {
            *reinterpret_cast<std::uint32_t*>(at) = pair;
          } else {
            if (row < out.rows) at[0] = __ushort_as_bfloat16(pair & 0xffff);
            if (row + 1 < out.rows) at[1] = __ushort_as_bfloat16(pair >> 16);
          }
        }
      }
    }
  }
}

// The ring as its consumers see it: shared memory addresses.
struct RingView {
  std::uint32_t stages;  // the first stage; weights, then x
  std::uint32_t full;  // the first barrier of each kind
  std::uint32_t x_full;
  std::uint32_t empty;
};

// What a warp multiplies at a time, in registers: chunks of its group's weights, and of x for N
// tiles of 8 rows.
template <int N, int Chunks>
struct Fragments {
  std::uint32_t a[Chunks][4][4];
  std::uint32_t b[Chunks][N][2][4];

  __device__ __forceinline__ void load_weights(int c, std::uint32_t from) {
#pragma unroll
    for (int k = 0; k < 4; ++k)
      ptx::load_matrices(a[c][k], from + k * 256);
  }
  __device__ __forceinline__ void load_x(int c, std::uint32_t from) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      ptx::load_matrices(b[c][n][0], from + n * kGroupBytes);
      ptx::load_matrices(b[c][n][1], from + n * kGroupBytes + 512);
    }
  }
  // d += chunk c. One tile's products are a chain, those of several fill its gaps.
  __device__ __forceinline__ void multiply(float (*d)[4], int c) const {
#pragma unroll
    for (int k = 0; k < 4; ++k)
#pragma unroll
      for (int n = 0; n < N; ++n)
        ptx::mma(d[n], a[c][k], b[c][n][k / 2][k % 2 * 2], b[c][n][k / 2][k % 2 * 2 + 1]);
  }
};

// A consumer: one group of outputs after the other, over all of K, in stages of CH chunks. A sum is
// one chain of products, 25 cycles each, and where the ring is full when x arrives (a projection
// that is not longer than it) this chain is all the time there is. So as little as can be stands
// between two products: while some chunks are multiplied the next ones come to registers, and the
// next stage is asked about ahead.
template <int NT, int CH, Epilogue E>
__device__ __forceinline__ void consume(const StreamParams& p, const RingView& ring, int first,
                                        int last) {
  // With more rows there are too few registers to load ahead, and enough chains that need it less.
  constexpr bool kAhead = NT <= 4;
  constexpr int kTiles = kAhead ? NT : NT / 2;  // of x, in registers at a time
  constexpr int kSet = NT == 1 ? 2 : 1;  // chunks in registers at a time
  using F = Fragments<kTiles, kSet>;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const std::uint32_t stage_weights = p.warps * CH * kWeightBytes;
  const std::uint32_t stage_bytes = stage_weights + CH * NT * kGroupBytes;
  const std::uint32_t number =
      p.exchange.size > 1 ? peer::exchanges_done(p.exchange) + p.ordinal : 0;
  ptx::wait_for_previous_kernel();  // the output may be what an earlier kernel still reads
  // ldmatrix addresses of this lane in a stage: A takes matrices (rows 0-7, k 0-7), (8-15, 0-7),
  // (0-7, 8-15), (8-15, 8-15) of a step; B takes four neighbours along K, two steps.
  const std::uint32_t a_lane = ring.stages + warp * CH * kWeightBytes +
                               (lane / 8 % 2) * 8 * kChunk * 2 + (lane / 16) * 128 +
                               (lane % 8) * 16;
  const std::uint32_t b_lane = ring.stages + stage_weights + lane * 16;
  const auto weights_at = [&](int s, int c) { return a_lane + s * stage_bytes + c * kWeightBytes; };
  const auto x_at = [&](int s, int c) { return b_lane + s * stage_bytes + c * NT * kGroupBytes; };
  int stage = 0;
  std::uint32_t phase = 0;
  const auto wait = [&] {
    ptx::barrier_wait(ring.full + stage * 8, phase);
    ptx::barrier_wait(ring.x_full + stage * 8, phase);
  };
  const auto next_is_there = [&] {
    const int next = stage + 1 == p.stages ? 0 : stage + 1;
    const std::uint32_t next_phase = next == 0 ? phase ^ 1 : phase;
    return ptx::barrier_done(ring.full + next * 8, next_phase) &
           ptx::barrier_done(ring.x_full + next * 8, next_phase);
  };
  const auto leave = [&] {
    // Loads of the stage may still be on their way to registers. They and the arrival take the same
    // way, in order, and what is copied over them comes hundreds of cycles later.
    __syncwarp();
    if (lane == 0) ptx::barrier_arrive(ring.empty + stage * 8);
    ++stage;
    if (stage == p.stages) {
      stage = 0;
      phase ^= 1;
    }
  };
  for (int base = first; base < last; base += p.warps) {
    if (base + warp >= last) {
      for (int left = p.chunks; left > 0; left -= CH) {
        wait();
        leave();
      }
      continue;
    }
    float d[NT][4] = {};
    float old[NT][4] = {};
    if (E == Epilogue::kAddF32) load_residual<NT>(p, base + warp, old);
    int left = p.chunks;  // not yet multiplied
    if constexpr (kAhead) {
      constexpr int kSets = CH / kSet;  // of a stage
      F even;
      F odd;
      bool there = false;
      const auto load_set = [&](F& set, int first_chunk) {
#pragma unroll
        for (int c = 0; c < kSet; ++c) {
          set.load_weights(c, weights_at(stage, first_chunk + c));
          set.load_x(c, x_at(stage, first_chunk + c));
        }
      };
      wait();
      load_set(even, 0);
      // Set `i` of a stage; says whether there is more.
      const auto multiply_set = [&](int i, const F& now, F& then) {
        const bool ends = i == kSets - 1;  // the stage, which has been read
        if (ends) {
          leave();
          if (left > kSet && !there) wait();
        }
        // Behind the last set what is read is anything, and not used.
        load_set(then, ends ? 0 : (i + 1) * kSet);
        if ((i + 1) % kSets == kSets - 1) there = next_is_there();
#pragma unroll
        for (int c = 0; c < kSet; ++c)
          if (c == 0 || left > c) now.multiply(d, c);
        left -= kSet;
        return left > 0;
      };
      // By twos, so that each set has registers of its own.
      const auto run = [&] {
        while (true) {
#pragma unroll
          for (int i = 0; i < (kSets == 1 ? 2 : kSets); i += 2) {
            if (!multiply_set(i % kSets, even, odd)) return i % kSets;
            if (!multiply_set((i + 1) % kSets, odd, even)) return (i + 1) % kSets;
          }
        }
      };
      if (run() != kSets - 1) leave();
    } else {
      F f;
      for (; left > 0; left -= CH) {
        wait();
#pragma unroll
        for (int c = 0; c < CH; ++c) {
          if (c >= left) break;
          f.load_weights(0, weights_at(stage, c));
#pragma unroll
          for (int tile = 0; tile < NT; tile += kTiles) {
            f.load_x(0, x_at(stage, c) + tile * kGroupBytes);
            f.multiply(d + tile, 0);
          }
        }
        leave();
      }
    }
    store<E, NT>(p, base + warp, d, old, number);
  }
}

template <int NT, int CH, Epilogue E>
__global__ void __launch_bounds__(32 * (kMaxWarps + kProducers + 1), 1)
    stream_kernel(const __grid_constant__ StreamParams p) {
  extern __shared__ __align__(128) unsigned char ring[];
  __shared__ __align__(8) std::uint64_t full[kMaxStages];
  __shared__ __align__(8) std::uint64_t x_full[kMaxStages];
  __shared__ __align__(8) std::uint64_t empty[kMaxStages];
  __shared__ volatile int has_begun;  // the kernels ahead are done
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int stage_weights = p.warps * CH * kWeightBytes;
  const int stage_bytes = stage_weights + CH * NT * kGroupBytes;
  const int steps = ceil_div(p.chunks, CH);  // stages of one pass over K
  if (threadIdx.x == 0) {
    for (int i = 0; i < p.stages; ++i) {
      ptx::barrier_init(ptx::shared_address(&full[i]), kProducers);
      ptx::barrier_init(ptx::shared_address(&x_full[i]), 1);
      ptx::barrier_init(ptx::shared_address(&empty[i]), p.warps);
    }
    ptx::barrier_init_fence();
    has_begun = 0;
  }
  __syncthreads();
  ptx::let_next_kernel_start();
  // The last blocks have the least to do: they come to the multiprocessors that the kernel ahead
  // leaves late.
  const int each = p.groups / static_cast<int>(gridDim.x);
  const int more = p.groups % static_cast<int>(gridDim.x);  // blocks with one group more
  const int block = static_cast<int>(blockIdx.x);
  const int first = block * each + min(block, more);
  const int last = first + each + (block < more ? 1 : 0);
  const int total = ceil_div(last - first, p.warps) * steps;

  if (warp < p.warps) {
    RingView view{ptx::shared_address(ring), ptx::shared_address(full), ptx::shared_address(x_full),
                  ptx::shared_address(empty)};
    // Kept, or the compiler derives each of them again wherever it is used.
    asm volatile("" : "+r"(view.stages), "+r"(view.full), "+r"(view.x_full), "+r"(view.empty));
    consume<NT, CH, E>(p, view, first, last);
  } else if (lane == 0 && warp < p.warps + kProducers) {  // the weights
    const int producer = warp - p.warps;
    for (int t = 0; t < total; ++t) {
      const int stage = t % p.stages;
      const int group = first + t / steps * p.warps;
      const int chunk = t % steps * CH;
      const int chunks = min(CH, p.chunks - chunk);
      const int groups = min(p.warps, last - group);
      if (t >= p.stages)
        ptx::barrier_wait(ptx::shared_address(&empty[stage]), (t / p.stages & 1) ^ 1);
      const int window = has_begun != 0 ? p.window : p.early_window;
      if (const int landed = t - window; landed >= 0)
        ptx::barrier_wait(ptx::shared_address(&full[landed % p.stages]), landed / p.stages & 1);
      const std::uint32_t barrier = ptx::shared_address(&full[stage]);
      const std::uint32_t to = ptx::shared_address(ring) + stage * stage_bytes;
      ptx::barrier_expect(barrier,
                          max(0, ceil_div(groups - producer, kProducers)) * chunks * kWeightBytes);
      for (int g = producer; g < groups; g += kProducers)
        ptx::bulk_copy_once(
            to + g * CH * kWeightBytes,
            p.weight + (static_cast<std::size_t>(group + g) * p.chunks + chunk) * kWeightBytes,
            chunks * kWeightBytes, barrier);
    }
  } else if (lane == 0) {  // x, once the kernels ahead have written it
    ptx::wait_for_previous_kernel();
    has_begun = 1;
    for (int t = 0; t < total; ++t) {
      const int stage = t % p.stages;
      const int chunk = t % steps * CH;
      const int chunks = min(CH, p.chunks - chunk);
      if (t >= p.stages)
        ptx::barrier_wait(ptx::shared_address(&empty[stage]), (t / p.stages & 1) ^ 1);
      const std::uint32_t barrier = ptx::shared_address(&x_full[stage]);
      const std::uint32_t to = ptx::shared_address(ring) + stage * stage_bytes + stage_weights;
      ptx::barrier_expect(barrier, chunks * NT * kGroupBytes);
      for (int c = 0; c < chunks; ++c)
        ptx::bulk_copy(to + c * NT * kGroupBytes,
                       p.x + static_cast<std::size_t>(chunk + c) * kTileChunkBytes,
                       NT * kGroupBytes, barrier);
    }
  }
}

template <int NT, int CH>
auto kernel_for(Epilogue epilogue) {
  return with_epilogue(epilogue, [&]<Epilogue E>() { return &stream_kernel<NT, CH, E>; });
}

template <int NT>
void prepare() {
  for (const Epilogue epilogue : kAllEpilogues) {
    constexpr const char* kWhat = "shared memory of the streaming kernel";
    prepare_kernel(kernel_for<NT, kShortStage>(epilogue), kRingBytes, kWhat);
    prepare_kernel(kernel_for<NT, kLongStage>(epilogue), kRingBytes, kWhat);
  }
}

template <int NT>
void launch(StreamParams p, Epilogue epilogue, int blocks, bool behind_exchange,
            cudaStream_t stream) {
  // Long stages keep the copies long; at least three of them keep the ring turning.
  const int chunk_bytes = p.warps * kWeightBytes + NT * kGroupBytes;
  const bool is_long = kShortStage * chunk_bytes < kMostShortBytes;
  const int stage_bytes = (is_long ? kLongStage : kShortStage) * chunk_bytes;
  p.stages = std::min(kMaxStages, kRingBytes / stage_bytes);
  p.window = std::min(p.stages, std::max(2, kWindowBytes / stage_bytes));
  p.early_window = behind_exchange ? 1 : p.window;
  launch_early(
      is_long ? kernel_for<NT, kLongStage>(epilogue) : kernel_for<NT, kShortStage>(epilogue),
      {blocks, 32 * (p.warps + kProducers + 1), static_cast<std::size_t>(p.stages) * stage_bytes},
      stream, "linear (stream)", p);
}

// As many warps as make the rounds of the busiest block even.
int warps_of(int groups, int blocks) {
  const int busiest = ceil_div(groups, blocks);
  return ceil_div(busiest, ceil_div(busiest, kMaxWarps));
}

}  // namespace

void prepare_stream_kernels() {
  prepare<1>();
  prepare<2>();
  prepare<3>();
  prepare<4>();
  prepare<6>();
  prepare<8>();
}

void linear_stream(const CudaDevice& device, const LinearParams& params, int first_row,
                   int num_rows, thaw::cuda::StreamView stream) {
  StreamParams p{};
  p.weight = reinterpret_cast<const char*>(params.weight.data);
  p.x = reinterpret_cast<const char*>(params.x.data) +
        static_cast<std::size_t>(first_row) * params.weight.cols * sizeof(Bf16);
  p.out = {params.out, params.out_stride, params.bias, params.weight.rows, num_rows};
  if (params.epilogue == Epilogue::kSwigluTiles && params.out_stride == 0)
    p.out.stride = params.weight.rows / 2;
  p.exchange = params.exchange;
  p.ordinal = params.ordinal;
  p.first_row = first_row;
  p.groups = ceil_div(params.weight.rows, kWeightGroup);
  p.chunks = params.weight.cols / kChunk;
  const int blocks = std::min(p.groups, device.multiprocessors());
  p.warps = warps_of(p.groups, blocks);
  if (num_rows <= 8)
    launch<1>(p, params.epilogue, blocks, params.behind_exchange, stream.get());
  else if (num_rows <= 16)
    launch<2>(p, params.epilogue, blocks, params.behind_exchange, stream.get());
  else if (num_rows <= 24)
    launch<3>(p, params.epilogue, blocks, params.behind_exchange, stream.get());
  else if (num_rows <= 32)
    launch<4>(p, params.epilogue, blocks, params.behind_exchange, stream.get());
  else if (num_rows <= 48)
    launch<6>(p, params.epilogue, blocks, params.behind_exchange, stream.get());
  else
    launch<8>(p, params.epilogue, blocks, params.behind_exchange, stream.get());
}

}  // namespace thaw::ops::cuda
