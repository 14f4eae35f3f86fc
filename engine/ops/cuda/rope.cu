#include <string>

#include "engine/base/error.h"
#include "engine/ops/cuda/elementwise.h"
#include "engine/ops/cuda/kernels.h"
#include "engine/ops/cuda/launch.cuh"
#include "engine/ops/cuda/norm_math.cuh"
#include "engine/ops/cuda/ptx.cuh"
#include "engine/ops/cuda/rope_math.cuh"

// Between projection and attention: the optional norm of a head, the rotation, and storing. A lane
// of a warp holds D / 64 pairs of a head's dims, from pair lane * D / 64 on. In a head's memory
// their dims are neighbours, so that a lane moves whole words where the head is aligned.

namespace thaw::ops::cuda {
namespace {

constexpr int kSharedHeads = 2;  // of one warp, where there are many rows
constexpr int kManyRows = 256;

void require(bool holds, const char* what, std::int64_t value, const char* right) {
  if (!holds)
    throw Exception(make_error(Errc::kInvalidArgument,
                               std::string(what) + " is " + std::to_string(value) + "; " + right));
}

// Values of a lane: [pair][first, second dim].
template <int D>
using LanePairs = float[D / 64][2];

// Sines and cosines of a lane's pairs.
template <int D>
struct LaneAngles {
  float cos[D / 64];
  float sin[D / 64];

  __device__ __forceinline__ LaneAngles(const RopeAndStoreParams& r, int position) {
    const std::size_t at =
        static_cast<std::size_t>(position) * (D / 2) + threadIdx.x % 32 * (D / 64);
#pragma unroll
    for (int i = 0; i < D / 64; ++i) {
      cos[i] = r.cos != nullptr ? r.cos[at + i] : 1.0F;
      sin[i] = r.cos != nullptr ? r.sin[at + i] : 0.0F;
    }
  }
};

// Dim `e` of the lane's pair `i`.
template <int D>
__device__ __forceinline__ int lane_dim(bool half_split, int i, int e) {
  const int pair = threadIdx.x % 32 * (D / 64) + i;
  return half_split ? pair + e * (D / 2) : pair * 2 + e;
}

// The lane's pairs of a head in memory.
template <int D>
__device__ __forceinline__ void load_pairs(const Bf16* x, bool half_split, LanePairs<D>& v) {
  const int lane = threadIdx.x % 32;
  if constexpr (D == 128) {
    if ((reinterpret_cast<std::uintptr_t>(x) & 7) == 0) {
      const auto* words = reinterpret_cast<const std::uint32_t*>(x);
      const std::uint32_t a = half_split ? words[lane] : words[lane * 2];
      const std::uint32_t b = half_split ? words[lane + 32] : words[lane * 2 + 1];
      v[0][0] = low_bf16(a);
      v[1][1] = high_bf16(b);
      v[1][0] = half_split ? high_bf16(a) : low_bf16(b);
      v[0][1] = half_split ? low_bf16(b) : high_bf16(a);
      return;
    }
  }
#pragma unroll
  for (int i = 0; i < D / 64; ++i)
#pragma unroll
    for (int e = 0; e < 2; ++e)
      v[i][e] = __bfloat162float(x[lane_dim<D>(half_split, i, e)]);
}

// Rounds them and writes them to where `at(dim)` says; `words`: dims 2i and 2i + 1 lie side by
// side there, in one word.
template <int D, typename At>
__device__ __forceinline__ void store_pairs(const At& at, bool half_split, bool words,
                                            const LanePairs<D>& v) {
  if (D == 128 && words) {
    *reinterpret_cast<std::uint32_t*>(at(lane_dim<D>(half_split, 0, 0))) =
        ptx::pack_bf16(v[0][0], half_split ? v[D / 64 - 1][0] : v[0][1]);
    *reinterpret_cast<std::uint32_t*>(
        at(half_split ? lane_dim<D>(true, 0, 1) : lane_dim<D>(false, D / 64 - 1, 0))) =
        ptx::pack_bf16(half_split ? v[0][1] : v[D / 64 - 1][0], v[D / 64 - 1][1]);
    return;
  }
#pragma unroll
  for (int i = 0; i < D / 64; ++i)
#pragma unroll
    for (int e = 0; e < 2; ++e)
      *at(lane_dim<D>(half_split, i, e)) = __float2bfloat16_rn(v[i][e]);
}

// RMSNorm by `norm` where it is not null, then the rotation where there is one.
template <int D>
__device__ __forceinline__ void rotate(const RopeAndStoreParams& r, const float* norm,
                                       const LaneAngles<D>& angles, LanePairs<D>& v) {
  constexpr int kPairs = D / 64;
  if (norm != nullptr) {
    float sum = 0.0F;
#pragma unroll
    for (int i = 0; i < kPairs; ++i)
      sum = __fmaf_rn(v[i][1], v[i][1], __fmaf_rn(v[i][0], v[i][0], sum));
    const float mean = __fdiv_rn(warp_sum(sum), static_cast<float>(D));
    const float scale = __fdiv_rn(1.0F, __fsqrt_rn(__fadd_rn(mean, r.norm_eps)));
#pragma unroll
    for (int i = 0; i < kPairs; ++i)
#pragma unroll
      for (int e = 0; e < 2; ++e)
        v[i][e] = __fmul_rn(__fmul_rn(v[i][e], scale), norm[lane_dim<D>(r.half_split, i, e)]);
  }
  if (r.cos == nullptr) return;
#pragma unroll
  for (int i = 0; i < kPairs; ++i)
    rotate_pair(v[i][0], v[i][1], angles.cos[i], angles.sin[i]);
}

// The lane's D / 32 dims of v, from lane * D / 32 on, and whether all of the head's are finite. A
// value that is not never enters a block: v becomes zeros then, and k NaN.
template <int D>
struct LaneValues {
  std::uint32_t words[D / 64];

  __device__ __forceinline__ void load(const Bf16* v) {
    const int lane = threadIdx.x % 32;
    if ((reinterpret_cast<std::uintptr_t>(v) & 3) == 0) {
#pragma unroll
      for (int i = 0; i < D / 64; ++i)
        words[i] = reinterpret_cast<const std::uint32_t*>(v)[lane * (D / 64) + i];
      return;
    }
#pragma unroll
    for (int i = 0; i < D / 64; ++i) {
      const Bf16* at = v + (lane * (D / 64) + i) * 2;
      words[i] = __bfloat16_as_ushort(at[0]) | __bfloat16_as_ushort(at[1]) << 16;
    }
  }

  // By the whole warp.
  __device__ __forceinline__ bool keep_finite() {
    bool finite = true;
#pragma unroll
    for (const std::uint32_t word : words)
      finite = still_finite(finite, word);
    finite = __all_sync(0xffffffff, finite);
    if (!finite) {
#pragma unroll
      for (std::uint32_t& word : words)
        word = 0;
    }
    return finite;
  }
};

constexpr std::uint32_t kBadPair = 0x7fff7fffU;  // two NaNs of bf16

template <int D>
__device__ __forceinline__ void mark_bad(LanePairs<D>& k) {
#pragma unroll
  for (int i = 0; i < D / 64; ++i)
    k[i][0] = k[i][1] = __uint_as_float(0x7fffffffU);  // as bf16 half of kBadPair
}

// One warp for H heads of a row: few rows fill the device with one each, many share what a row's
// position says and have several loads in flight.
template <int D, int H>
__global__ void __launch_bounds__(128) rope_and_store_kernel(RopeAndStoreParams p) {
  constexpr int kBatch = H < 4 ? H : 4;  // heads in flight
  ptx::let_next_kernel_start();
  const int heads = p.shape.num_heads + p.shape.num_kv_heads;  // a k head brings its v along
  const int slices = ceil_div(heads, H);
  const std::int64_t index = blockIdx.x * 4LL + threadIdx.x / 32;
  if (index >= static_cast<std::int64_t>(p.num_rows) * slices) return;
  const int row = static_cast<int>(index / slices);
  const int first = static_cast<int>(index % slices) * H;
  // What the batch's inputs and the model say is there before the kernels ahead are done.
  const int position = p.positions[row];
  const BlockId block = p.blocks[row];
  const LaneAngles<D> angles(p, position);
  const int token = position % kBlockSize;
  const int lane = threadIdx.x % 32;
  ptx::wait_for_previous_kernel();
  for (int begin = first; begin < min(first + H, heads); begin += kBatch) {
    LanePairs<D> pairs[kBatch];
    LaneValues<D> values[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int head = begin + i;
      if (head >= heads) break;
      const Bf16* x = p.qkv + row * p.stride + head * D;
      load_pairs<D>(x, p.half_split, pairs[i]);
      if (head >= p.shape.num_heads) values[i].load(x + p.shape.num_kv_heads * D);
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int head = begin + i;
      if (head >= heads) break;
      Bf16* x = p.qkv + row * p.stride + head * D;
      const bool is_q = head < p.shape.num_heads;
      rotate<D>(p, is_q ? p.q_norm : p.k_norm, angles, pairs[i]);
      if (is_q) {
        store_pairs<D>([x](int dim) { return x + dim; }, p.half_split,
                       (reinterpret_cast<std::uintptr_t>(x) & 7) == 0, pairs[i]);
        continue;
      }
      if (block < 0) continue;
      if (!values[i].keep_finite()) mark_bad<D>(pairs[i]);
      Bf16* k_slab = p.kv.slab(block, p.layer, false, head - p.shape.num_heads);
      Bf16* v_slab = p.kv.slab(block, p.layer, true, head - p.shape.num_heads);
      store_pairs<D>([&](int dim) { return k_slab + p.kv.slab_index(token, dim); }, p.half_split,
                     true, pairs[i]);
#pragma unroll
      for (int w = 0; w < D / 64; ++w)
        *reinterpret_cast<std::uint32_t*>(
            v_slab + p.kv.slab_index(token, (lane * (D / 64) + w) * 2)) = values[i].words[w];
    }
  }
}

constexpr int kMarkThreads = 256;

// One thread a row and KV head.
__global__ void __launch_bounds__(kMarkThreads) mark_bad_keys_kernel(RopeAndStoreParams p) {
  ptx::let_next_kernel_start();
  ptx::wait_for_previous_kernel();
  const std::int64_t index = blockIdx.x * static_cast<std::int64_t>(kMarkThreads) + threadIdx.x;
  if (index >= static_cast<std::int64_t>(p.num_rows) * p.shape.num_kv_heads) return;
  if (p.bad_values[index] == 0) return;
  p.bad_values[index] = 0;
  const auto row = static_cast<int>(index / p.shape.num_kv_heads);
  const auto kv_head = static_cast<int>(index % p.shape.num_kv_heads);
  Bf16* const k = p.kv.slab(p.blocks[row], p.layer, false, kv_head);
  for (int dim = 0; dim < p.shape.head_dim; dim += 2)
    *reinterpret_cast<std::uint32_t*>(k + p.kv.slab_index(p.positions[row] % kBlockSize, dim)) =
        kBadPair;
}

}  // namespace

void prepare_rope_kernels() {
  for (const int head_dim : {64, 128})
    with_head_dim(head_dim, [&]<int D>() {
      prepare_kernel(&rope_and_store_kernel<D, 1>, 0, "rope_and_store");
      prepare_kernel(&rope_and_store_kernel<D, kSharedHeads>, 0, "rope_and_store");
    });
  prepare_kernel(&mark_bad_keys_kernel, 0, "mark_bad_keys");
}

void mark_bad_keys(const CudaDevice& /*device*/, const RopeAndStoreParams& params,
                   thaw::cuda::StreamView stream) {
  const std::int64_t flags = static_cast<std::int64_t>(params.num_rows) * params.shape.num_kv_heads;
  launch_early(&mark_bad_keys_kernel,
               {static_cast<int>((flags + kMarkThreads - 1) / kMarkThreads), kMarkThreads},
               stream.get(), "mark_bad_keys", params);
}

void rope_and_store(const CudaDevice& /*device*/, const RopeAndStoreParams& params,
                    thaw::cuda::StreamView stream) {
  const AttentionShape& shape = params.shape;
  require(params.num_rows > 0, "rope: num_rows", params.num_rows, "it must be at least 1");
  require(shape.head_dim == 64 || shape.head_dim == 128, "rope: head_dim", shape.head_dim,
          "it must be 64 or 128");
  require(params.kv.head_dim == shape.head_dim && params.kv.num_kv_heads == shape.num_kv_heads,
          "rope: kv.head_dim", params.kv.head_dim, "the KV layout must be the shape's");
  require(params.layer >= 0 && params.layer < params.kv.num_layers, "rope: layer", params.layer,
          "it must be one of the KV layout's");
  const bool many = params.num_rows >= kManyRows;
  const std::int64_t warps =
      static_cast<std::int64_t>(params.num_rows) *
      ceil_div(shape.num_heads + shape.num_kv_heads, many ? kSharedHeads : 1);
  const int blocks = static_cast<int>((warps + 3) / 4);
  with_head_dim(shape.head_dim, [&]<int D>() {
    launch_early(many ? &rope_and_store_kernel<D, kSharedHeads> : &rope_and_store_kernel<D, 1>,
                 {blocks, 128}, stream.get(), "rope_and_store", params);
  });
}

}  // namespace thaw::ops::cuda
