#include <string>

#include "engine/base/error.h"
#include "engine/ops/cuda/draw.h"
#include "engine/ops/cuda/kernels.h"
#include "engine/ops/cuda/launch.cuh"
#include "engine/ops/cuda/ptx.cuh"

// Two kernels over blocks of 1,024 logits, a warp each: the largest logit of each block, then the
// sums of the weights, which need the largest of all. The thread block that finishes a row's last
// sums walks them. A counter decides who that is, never what it adds.

namespace thaw::ops::cuda {
namespace {

constexpr int kWarps = 4;  // a thread block
constexpr int kThreads = 32 * kWarps;
constexpr int kSteps = kDrawBlockTokens / kDrawLanes;  // logits a lane
constexpr int kMostBlocks = 1024;  // of one row: a million tokens

struct DrawKernelParams {
  DrawParams p;
  int blocks;  // of a row
  double* sums;  // [num_rows][blocks]
  float* largest;  // [num_rows][blocks]; NaN where a logit of the block is one, or +infinity
  std::int32_t* first;  // [num_rows][blocks]: lowest token that has it
  std::int32_t* done;  // [num_rows]: thread blocks that have written their sums
};

/// A row's logits as its mask leaves them.
struct MaskedRow {
  const float* logits;
  const std::uint32_t* mask;  // null: all may be drawn

  __device__ __forceinline__ MaskedRow(const DrawKernelParams& k, int row)
      : logits(k.p.logits + row * k.p.stride), mask(nullptr) {
    const int number = k.p.mask_of_row == nullptr ? -1 : k.p.mask_of_row[row];
    if (number >= 0)
      mask = k.p.masks + static_cast<std::int64_t>(number) * draw_mask_words(k.p.vocabulary);
  }
  // A NaN or +infinity stays what it is: it is an error, barred or not.
  __device__ __forceinline__ float logit(int token) const {
    const float value = logits[token];
    const bool is_barred = mask != nullptr && (mask[token / 32] >> (token % 32) & 1U) == 0;
    return is_barred && value < INFINITY ? -INFINITY : value;
  }
};

struct Best {
  float logit;
  std::int32_t token;
};

// The better of two: the larger, then the lower token; a NaN beats all.
__device__ __forceinline__ Best better(const Best& a, const Best& b) {
  if (isnan(a.logit) || isnan(b.logit)) return isnan(a.logit) ? a : b;
  if (a.logit != b.logit) return a.logit > b.logit ? a : b;
  return a.token < b.token ? a : b;
}

__device__ __forceinline__ Best warp_best(Best best) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2)
    best = better(best, {__shfl_xor_sync(0xffffffff, best.logit, offset),
                         __shfl_xor_sync(0xffffffff, best.token, offset)});
  return best;
}

__global__ void __launch_bounds__(kThreads) largest_kernel(DrawKernelParams k) {
  ptx::let_next_kernel_start();
  ptx::wait_for_previous_kernel();
  const int row = blockIdx.y;
  const int block = blockIdx.x * kWarps + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (blockIdx.x == 0 && threadIdx.x == 0) k.done[row] = 0;
  if (block >= k.blocks) return;
  const MaskedRow logits(k, row);
  float values[kSteps];
#pragma unroll
  for (int j = 0; j < kSteps; ++j) {
    const int token = block * kDrawBlockTokens + j * kDrawLanes + lane;
    values[j] = token < k.p.vocabulary ? logits.logit(token) : -INFINITY;
  }
  Best best{-INFINITY, INT32_MAX};
#pragma unroll
  for (int j = 0; j < kSteps; ++j) {
    const float value = values[j] < INFINITY ? values[j] : NAN;
    best = better(best, {value, block * kDrawBlockTokens + j * kDrawLanes + lane});
  }
  best = warp_best(best);
  if (lane == 0) {
    k.largest[row * k.blocks + block] = best.logit;
    k.first[row * k.blocks + block] = best.token;
  }
}

__device__ __forceinline__ double weight_of(const DrawKernelParams& k, const MaskedRow& logits,
                                            int token, float largest, const DrawRow& how) {
  return token >= 0 && token < k.p.vocabulary
             ? draw_weight(logits.logit(token), largest, how.temperature, how.min_p)
             : 0.0;
}

// One warp: the walk over the blocks, their groups and their tokens.
__device__ std::int32_t walk(const DrawKernelParams& k, const MaskedRow& logits, float largest,
                             const DrawRow& how, const double* sums) {
  const int lane = threadIdx.x;
  DrawWalk blocks;
  if (lane == 0) {
    double total = 0.0;
    for (int i = 0; i < k.blocks; ++i)
      total += sums[i];
    blocks.target = how.uniform * total;
    for (int i = 0; i < k.blocks; ++i)
      if (blocks.passes(i, sums[i])) break;
  }
  const int block = __shfl_sync(0xffffffff, blocks.index, 0) * kDrawBlockTokens;
  // Lane g sums group g in order.
  double group_sum = 0.0;
  for (int i = 0; i < kDrawGroupTokens; ++i)
    group_sum += weight_of(k, logits, block + lane * kDrawGroupTokens + i, largest, how);
  DrawWalk groups{blocks.target, blocks.before};
  bool found = false;
  for (int i = 0; i < kDrawBlockTokens / kDrawGroupTokens; ++i) {
    const double sum = __shfl_sync(0xffffffff, group_sum, i);
    if (lane == 0 && !found) found = groups.passes(i, sum);
  }
  const int group = block + __shfl_sync(0xffffffff, groups.index, 0) * kDrawGroupTokens;
  const double own = weight_of(k, logits, group + lane, largest, how);
  DrawWalk tokens{groups.target, groups.before};
  found = false;
  for (int i = 0; i < kDrawGroupTokens; ++i) {
    const double weight = __shfl_sync(0xffffffff, own, i);
    if (lane == 0 && !found) found = tokens.passes(i, weight);
  }
  return max(-1, group + __shfl_sync(0xffffffff, tokens.index, 0));
}

__global__ void __launch_bounds__(kThreads) draw_kernel(DrawKernelParams k) {
  __shared__ Best bests[kWarps];
  __shared__ double sums[kMostBlocks];
  __shared__ bool last;
  ptx::let_next_kernel_start();
  const int row = blockIdx.y;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int block = blockIdx.x * kWarps + warp;
  ptx::wait_for_previous_kernel();
  const DrawRow how = k.p.rows[row];
  const MaskedRow logits(k, row);
  Best best{-INFINITY, INT32_MAX};
  for (int i = threadIdx.x; i < k.blocks; i += kThreads)
    best = better(best, {k.largest[row * k.blocks + i], k.first[row * k.blocks + i]});
  best = warp_best(best);
  if (lane == 0) bests[warp] = best;
  __syncthreads();
  best = bests[0];
#pragma unroll
  for (int i = 1; i < kWarps; ++i)
    best = better(best, bests[i]);
  const float largest = best.logit;
  if (!(largest > -INFINITY) || how.temperature == 0.0F) {
    if (blockIdx.x == 0 && threadIdx.x == 0) k.p.out[row] = largest > -INFINITY ? best.token : -1;
    return;
  }
  if (block < k.blocks) {
    double sum = 0.0;
    for (int j = 0; j < kSteps; ++j)
      sum += weight_of(k, logits, block * kDrawBlockTokens + j * kDrawLanes + lane, largest, how);
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2)
      sum += __shfl_xor_sync(0xffffffff, sum, offset);
    if (lane == 0) k.sums[row * k.blocks + block] = sum;
  }
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(&k.done[row], 1) == static_cast<int>(gridDim.x) - 1;
  __syncthreads();
  if (!last) return;
  __threadfence();
  for (int i = threadIdx.x; i < k.blocks; i += kThreads)
    sums[i] = __ldcg(&k.sums[row * k.blocks + i]);
  __syncthreads();
  if (warp != 0) return;
  const std::int32_t token = walk(k, logits, largest, how, sums);
  if (lane == 0) k.p.out[row] = token;
}

}  // namespace

void prepare_draw_kernels() {
  prepare_kernel(&largest_kernel, 0, "draw");
  prepare_kernel(&draw_kernel, 0, "draw");
}

void draw(const CudaDevice& /*device*/, const DrawParams& params, thaw::cuda::StreamView stream) {
  const auto require = [](bool holds, const char* what, std::int64_t value, const char* right) {
    if (!holds)
      throw Exception(make_error(Errc::kInvalidArgument, std::string("draw: ") + what + " is " +
                                                             std::to_string(value) + "; " + right));
  };
  require(params.num_rows > 0 && params.num_rows <= 65535, "num_rows", params.num_rows,
          "it must be 1 to 65535");
  require(params.vocabulary > 0 && params.vocabulary <= kMostBlocks * kDrawBlockTokens,
          "vocabulary", params.vocabulary, "it must be 1 to 1048576");
  require(params.stride >= params.vocabulary, "stride", params.stride,
          "it must be at least the vocabulary");
  if (params.mask_of_row != nullptr && params.masks == nullptr)
    require(false, "masks", 0, "rows that name one need it");
  DrawKernelParams k{};
  k.p = params;
  k.blocks = ceil_div(params.vocabulary, kDrawBlockTokens);
  const std::size_t all = static_cast<std::size_t>(params.num_rows) * k.blocks;
  k.sums = static_cast<double*>(params.workspace);
  k.largest = reinterpret_cast<float*>(k.sums + all);
  k.first = reinterpret_cast<std::int32_t*>(k.largest + all);
  k.done = k.first + all;
  LaunchShape shape{ceil_div(k.blocks, kWarps), kThreads};
  shape.rows = params.num_rows;
  launch_early(&largest_kernel, shape, stream.get(), "draw", k);
  launch_early(&draw_kernel, shape, stream.get(), "draw", k);
}

}  // namespace thaw::ops::cuda
