#include <algorithm>
#include <string>

#include "engine/base/error.h"
#include "engine/ops/cuda/all_gather.h"
#include "engine/ops/cuda/exchange.cuh"
#include "engine/ops/cuda/kernels.h"
#include "engine/ops/cuda/launch.cuh"
#include "engine/ops/cuda/norm_math.cuh"
#include "engine/ops/cuda/ptx.cuh"

namespace thaw::ops::cuda {
namespace {

constexpr int kRowThreads = kNormThreads;
constexpr int kHeld = 4;  // float4 of a row that a thread has in registers at once

void require(bool holds, const char* what, std::int64_t value, const char* right) {
  if (!holds)
    throw Exception(make_error(Errc::kInvalidArgument,
                               std::string(what) + " is " + std::to_string(value) + "; " + right));
}

__device__ __forceinline__ float4 as_floats(uint2 low, uint2 high) {
  return {__uint_as_float(low.x), __uint_as_float(low.y), __uint_as_float(high.x),
          __uint_as_float(high.y)};
}

// The arithmetic of rms_norm: one block a row, thread i columns 4 i .. 4 i + 3, then 1024 further
// on; then the warp by xor, then the eight warps in order.
__global__ void __launch_bounds__(kRowThreads)
    gather_norm_kernel(const __grid_constant__ GatherNormParams p) {
  __shared__ float parts[kRowThreads / 32];
  ptx::let_next_kernel_start();
  const ExchangeView& view = p.exchange;
  const int rank = view.rank;
  const int row = blockIdx.x;
  const int cols = p.norm.out.cols;
  const float* const x = p.norm.x + row * p.norm.x_stride;
  float4 weight[kHeld];
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int col = (i * kRowThreads + threadIdx.x) * 4;
    weight[i] = col < cols ? *reinterpret_cast<const float4*>(p.norm.weight + col) : float4{};
  }
  const auto owner_of = [&](int col) {
    int owner = 0;
    while (col >= p.bounds[owner + 1])
      ++owner;
    return owner;
  };
  // Two pairs of packets for four columns.
  const auto packets_of = [&](int at_rank, int from_rank, int col, std::uint32_t number) {
    const int width = p.bounds[from_rank + 1] - p.bounds[from_rank];
    return peer::landing(view, at_rank, from_rank, number) +
           (static_cast<std::size_t>(row) * width + col - p.bounds[from_rank]) * 8;
  };
  const std::uint32_t number = peer::exchanges_done(view) + p.ordinal;
  ptx::wait_for_previous_kernel();
  const auto send = [&](int col, const float4& v) {
    for (int hop = 1; hop < view.size; ++hop) {
      std::byte* const to = packets_of((rank + hop) % view.size, rank, col, number);
      peer::store_packets(to, __float_as_uint(v.x), __float_as_uint(v.y), number);
      peer::store_packets(to + 16, __float_as_uint(v.z), __float_as_uint(v.w), number);
    }
  };
  const auto receive = [&](int col, int owner) {
    const std::byte* const from = packets_of(rank, owner, col, number);
    const uint2 low = peer::load_packets(from, number, view, owner);
    return as_floats(low, peer::load_packets(from + 16, number, view, owner));
  };
  const auto sent = [&](int col) {
    const float4 v = *reinterpret_cast<const float4*>(x + col);
    if (!p.sent) send(col, v);
    return v;
  };
  // Everything of the own part is on its way before the first wait.
  float4 held[kHeld] = {};
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int col = (i * kRowThreads + threadIdx.x) * 4;
    if (col < cols && owner_of(col) == rank) held[i] = sent(col);
  }
  for (int col = (kHeld * kRowThreads + threadIdx.x) * 4; col < cols && !p.sent;
       col += kRowThreads * 4)
    if (owner_of(col) == rank) sent(col);
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int col = (i * kRowThreads + threadIdx.x) * 4;
    if (col >= cols) continue;
    if (const int owner = owner_of(col); owner != rank) held[i] = receive(col, owner);
  }
  const auto value_at = [&](int col) {
    const int owner = owner_of(col);
    return owner == rank ? *reinterpret_cast<const float4*>(x + col) : receive(col, owner);
  };
  float sum = 0.0F;
#pragma unroll
  for (int i = 0; i < kHeld; ++i)
    add_squares(sum, held[i]);
  for (int col = (kHeld * kRowThreads + threadIdx.x) * 4; col < cols; col += kRowThreads * 4)
    add_squares(sum, value_at(col));
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = sum;
  __syncthreads();
  const float scale = norm_scale(parts, static_cast<float>(cols), p.norm.eps);
  const auto write = [&](int col, const float4& v, const float4& w) {
    *reinterpret_cast<uint2*>(p.norm.out.data + tiles_index(row, col, cols)) = normed(v, scale, w);
  };
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int col = (i * kRowThreads + threadIdx.x) * 4;
    if (col < cols) write(col, held[i], weight[i]);
  }
  for (int col = (kHeld * kRowThreads + threadIdx.x) * 4; col < cols; col += kRowThreads * 4)
    write(col, value_at(col), *reinterpret_cast<const float4*>(p.norm.weight + col));
}

}  // namespace

void prepare_gather_norm_kernel() {
  prepare_kernel(&gather_norm_kernel, 0, "gather_norm");
}

bool gather_norm_serves(int size, int num_rows, std::span<const int> bounds) {
  for (int rank = 0; rank < size; ++rank) {
    const auto first = static_cast<std::size_t>(rank);
    const int width = bounds[first + 1] - bounds[first];
    if (bounds[first] % 4 != 0 || width % 4 != 0 ||
        static_cast<std::size_t>(num_rows) * static_cast<std::size_t>(width) * 8 > kMostPacketBytes)
      return false;
  }
  return true;
}

void gather_norm(const CudaDevice& /*device*/, const GatherNormParams& params,
                 thaw::cuda::StreamView stream) {
  const RmsNormParams& norm = params.norm;
  const int size = params.exchange.size;
  require(norm.num_rows > 0, "gather_norm: num_rows", norm.num_rows, "it must be at least 1");
  require(norm.rows == nullptr, "gather_norm: rows", 1, "rows are taken as they come");
  require(norm.out.cols > 0 && norm.out.cols % kChunk == 0, "gather_norm: cols", norm.out.cols,
          "it must be a multiple of 64");
  require(norm.x_stride % 4 == 0 && norm.x_stride >= norm.out.cols, "gather_norm: x_stride",
          norm.x_stride, "it must be a multiple of 4 and at least cols");
  require(params.bounds[0] == 0 && params.bounds[size] == norm.out.cols, "gather_norm: last bound",
          params.bounds[size], "it must be cols");
  require(gather_norm_serves(size, norm.num_rows, std::span(params.bounds).first(size + 1)),
          "gather_norm: num_rows", norm.num_rows, "a part must be at most 512 KiB of packets");
  launch_early(&gather_norm_kernel, {norm.num_rows, kRowThreads}, stream.get(), "gather_norm",
               params);
}

}  // namespace thaw::ops::cuda
