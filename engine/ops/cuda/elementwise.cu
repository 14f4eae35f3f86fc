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

// One block a row. Thread i sums columns 4 i .. 4 i + 3, then 1024 further on; then the warp, then
// the eight warps in order.
__global__ void __launch_bounds__(kRowThreads) rms_norm_kernel(RmsNormParams p) {
  __shared__ float parts[kRowThreads / 32];
  ptx::let_next_kernel_start();
  const int row = blockIdx.x;
  const float* x = p.x + (p.rows == nullptr ? row : p.rows[row]) * p.x_stride;
  // The row stays in registers up to 4,096 columns; all its loads are in flight at once. The
  // weights depend on no kernel.
  constexpr int kHeld = 4;
  float4 weight[kHeld];
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int col = (i * kRowThreads + threadIdx.x) * 4;
    weight[i] = col < p.out.cols ? *reinterpret_cast<const float4*>(p.weight + col) : float4{};
  }
  ptx::wait_for_previous_kernel();
  float4 held[kHeld];
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int col = (i * kRowThreads + threadIdx.x) * 4;
    held[i] = col < p.out.cols ? *reinterpret_cast<const float4*>(x + col) : float4{};
  }
  float sum = 0.0F;
#pragma unroll
  for (int i = 0; i < kHeld; ++i)
    add_squares(sum, held[i]);
  for (int col = (kHeld * kRowThreads + threadIdx.x) * 4; col < p.out.cols; col += kRowThreads * 4)
    add_squares(sum, *reinterpret_cast<const float4*>(x + col));
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = sum;
  __syncthreads();
  const float scale = norm_scale(parts, static_cast<float>(p.out.cols), p.eps);
  const auto write = [&](int col, const float4& v, const float4& w) {
    *reinterpret_cast<uint2*>(p.out.data + tiles_index(row, col, p.out.cols)) = normed(v, scale, w);
  };
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int col = (i * kRowThreads + threadIdx.x) * 4;
    if (col < p.out.cols) write(col, held[i], weight[i]);
  }
  for (int col = (kHeld * kRowThreads + threadIdx.x) * 4; col < p.out.cols; col += kRowThreads * 4)
    write(col, *reinterpret_cast<const float4*>(x + col),
          *reinterpret_cast<const float4*>(p.weight + col));
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
  prepare_kernel(&rms_norm_kernel, 0, "rms_norm");
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
  launch_early(&rms_norm_kernel, {params.num_rows, kRowThreads}, stream.get(), "rms_norm", params);
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
