#include <algorithm>
#include <string>

#include "engine/base/error.h"
#include "engine/ops/cuda/elementwise.h"
#include "engine/ops/cuda/kernels.h"
#include "engine/ops/cuda/launch.cuh"
#include "engine/ops/cuda/norm_math.cuh"
#include "engine/ops/cuda/ptx.cuh"

namespace thaw::ops::cuda {
namespace {

constexpr int kRowThreads = kNormThreads;

void require(bool holds, const char* what, std::int64_t value, const char* right) {
  if (!holds)
    throw Exception(make_error(Errc::kInvalidArgument,
                               std::string(what) + " is " + std::to_string(value) + "; " + right));
}

// One block for `Rows` rows, 1 or 2. Thread i sums columns 4 i .. 4 i + 3 of each, then 1024
// further on; then the warp, then the eight warps in order. Two rows' columns are neighbours in
// tiles: by pairs of threads, they are stored as whole sectors.
template <int Rows>
__global__ void __launch_bounds__(kRowThreads) rms_norm_kernel(RmsNormParams p) {
  __shared__ float parts[Rows][kRowThreads / 32];
  ptx::let_next_kernel_start();
  const int first = blockIdx.x * Rows;
  const int cols = p.out.cols;
  const float* x[Rows];
#pragma unroll
  for (int r = 0; r < Rows; ++r) {
    const int row = min(first + r, p.num_rows - 1);
    x[r] = p.x + (p.rows == nullptr ? row : p.rows[row]) * p.x_stride;
  }
  // Rows stay in registers up to 4,096 columns; all their loads are in flight at once. The weights
  // depend on no kernel.
  constexpr int kHeld = 4;
  float4 weight[kHeld];
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int col = (i * kRowThreads + threadIdx.x) * 4;
    weight[i] = col < cols ? *reinterpret_cast<const float4*>(p.weight + col) : float4{};
  }
  ptx::wait_for_previous_kernel();
  float4 held[Rows][kHeld];
#pragma unroll
  for (int r = 0; r < Rows; ++r)
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int col = (i * kRowThreads + threadIdx.x) * 4;
      held[r][i] = col < cols ? *reinterpret_cast<const float4*>(x[r] + col) : float4{};
    }
#pragma unroll
  for (int r = 0; r < Rows; ++r) {
    float sum = 0.0F;
#pragma unroll
    for (int i = 0; i < kHeld; ++i)
      add_squares(sum, held[r][i]);
    for (int col = (kHeld * kRowThreads + threadIdx.x) * 4; col < cols; col += kRowThreads * 4)
      add_squares(sum, *reinterpret_cast<const float4*>(x[r] + col));
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) parts[r][threadIdx.x / 32] = sum;
  }
  __syncthreads();
  float scale[Rows];
#pragma unroll
  for (int r = 0; r < Rows; ++r)
    scale[r] = norm_scale(parts[r], static_cast<float>(cols), p.eps);
  // By whole warps: `col` may be behind the last one.
  const auto write = [&](int col, const float4(&v)[Rows], const float4& w) {
    const uint2 mine = normed(v[0], scale[0], w);
    if constexpr (Rows == 1) {
      if (col < cols) *reinterpret_cast<uint2*>(p.out.data + tiles_index(first, col, cols)) = mine;
    } else {
      // An even thread takes the first row's 8 columns, an odd one the second's.
      const uint2 other = normed(v[1], scale[1], w);
      const bool odd = threadIdx.x % 2 != 0;
      const uint2 sent = odd ? mine : other;
      const uint2 taken = {__shfl_xor_sync(0xffffffff, sent.x, 1),
                           __shfl_xor_sync(0xffffffff, sent.y, 1)};
      const uint4 whole =
          odd ? uint4{taken.x, taken.y, other.x, other.y} : uint4{mine.x, mine.y, taken.x, taken.y};
      const int row = first + (odd ? 1 : 0);
      if (col < cols && row < p.num_rows)
        *reinterpret_cast<uint4*>(p.out.data + tiles_index(row, col / 8 * 8, cols)) = whole;
    }
  };
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    float4 v[Rows];
#pragma unroll
    for (int r = 0; r < Rows; ++r)
      v[r] = held[r][i];
    write((i * kRowThreads + threadIdx.x) * 4, v, weight[i]);
  }
  const int lane_col = static_cast<int>(threadIdx.x) % 32 * 4;
  for (int base = (kHeld * kRowThreads + threadIdx.x / 32 * 32) * 4; base < cols;
       base += kRowThreads * 4) {
    const int col = base + lane_col;
    const int from = min(col, cols - 4);
    float4 v[Rows];
#pragma unroll
    for (int r = 0; r < Rows; ++r)
      v[r] = *reinterpret_cast<const float4*>(x[r] + from);
    write(col, v, *reinterpret_cast<const float4*>(p.weight + from));
  }
}

__global__ void __launch_bounds__(kRowThreads) embedding_kernel(EmbeddingParams p) {
  ptx::let_next_kernel_start();
  ptx::wait_for_previous_kernel();
  const int id = p.ids[blockIdx.x];
  float* out = p.out + static_cast<std::size_t>(blockIdx.x) * p.table.cols;
  for (int col = threadIdx.x * 2; col < p.table.cols; col += kRowThreads * 2) {
    float2 value = {NAN, NAN};
    if (id >= 0 && id < p.table.rows)
      value = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(
          p.table.data + weight_index(id, col, p.table.cols)));
    *reinterpret_cast<float2*>(out + col) = value;
  }
}

// A candidate is a logit and its id; larger logits win, then lower ids.
__device__ __forceinline__ void take(float& best, int& id, float other, int other_id) {
  if (other > best || (other == best && other_id < id)) {
    best = other;
    id = other_id;
  }
}

constexpr int kArgmaxThreads = 1024;

__global__ void __launch_bounds__(kArgmaxThreads) argmax_kernel(ArgmaxParams p) {
  __shared__ float bests[32];
  __shared__ int ids[32];
  ptx::let_next_kernel_start();
  ptx::wait_for_previous_kernel();
  const float* logits = p.logits + blockIdx.x * p.stride;
  float best = -INFINITY;
  int id = p.vocabulary;
  int bad = 0;
  for (int i = threadIdx.x; i < p.vocabulary; i += kArgmaxThreads) {
    const float value = logits[i];
    bad |= !(value < INFINITY);
    take(best, id, value, i);
  }
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2)
    take(best, id, __shfl_xor_sync(0xffffffff, best, offset),
         __shfl_xor_sync(0xffffffff, id, offset));
  if (threadIdx.x % 32 == 0) {
    bests[threadIdx.x / 32] = best;
    ids[threadIdx.x / 32] = id;
  }
  bad = __syncthreads_or(bad);
  if (threadIdx.x != 0) return;
  for (int i = 1; i < kArgmaxThreads / 32; ++i)
    take(best, id, bests[i], ids[i]);
  p.out[blockIdx.x] = bad != 0 ? -1 : id;
}

}  // namespace

void prepare_elementwise_kernels() {
  prepare_kernel(&rms_norm_kernel<1>, 0, "rms_norm");
  prepare_kernel(&rms_norm_kernel<2>, 0, "rms_norm");
  prepare_kernel(&embedding_kernel, 0, "embedding");
  prepare_kernel(&argmax_kernel, 0, "argmax");
}

void rms_norm(const CudaDevice& /*device*/, const RmsNormParams& params,
              thaw::cuda::StreamView stream) {
  require(params.num_rows > 0, "rms_norm: num_rows", params.num_rows, "it must be at least 1");
  require(params.out.cols > 0 && params.out.cols % kChunk == 0, "rms_norm: cols", params.out.cols,
          "it must be a multiple of 64");
  require(params.x_stride % 4 == 0 && params.x_stride >= params.out.cols, "rms_norm: x_stride",
          params.x_stride, "it must be a multiple of 4 and at least cols");
  // Fewer fill the device with a block each.
  constexpr int kManyRows = 1024;
  if (params.num_rows >= kManyRows)
    launch_early(&rms_norm_kernel<2>, {ceil_div(params.num_rows, 2), kRowThreads}, stream.get(),
                 "rms_norm", params);
  else
    launch_early(&rms_norm_kernel<1>, {params.num_rows, kRowThreads}, stream.get(), "rms_norm",
                 params);
}

void embedding(const CudaDevice& /*device*/, const EmbeddingParams& params,
               thaw::cuda::StreamView stream) {
  require(params.num_rows > 0, "embedding: num_rows", params.num_rows, "it must be at least 1");
  require(params.table.cols > 0 && params.table.cols % kChunk == 0, "embedding: cols",
          params.table.cols, "it must be a multiple of 64");
  launch_early(&embedding_kernel, {params.num_rows, kRowThreads}, stream.get(), "embedding",
               params);
}

void argmax(const CudaDevice& /*device*/, const ArgmaxParams& params,
            thaw::cuda::StreamView stream) {
  require(params.num_rows > 0, "argmax: num_rows", params.num_rows, "it must be at least 1");
  require(params.vocabulary > 0 && params.stride >= params.vocabulary, "argmax: vocabulary",
          params.vocabulary, "it must be at least 1 and at most the stride");
  launch_early(&argmax_kernel, {params.num_rows, kArgmaxThreads}, stream.get(), "argmax", params);
}

}  // namespace thaw::ops::cuda
