#include <cuda_bf16.h>

#include "engine/cuda/check.h"
#include "engine/model/cuda/random_fill.h"

namespace thaw::model {
namespace {

constexpr int kBlocks = 2048;
constexpr int kThreads = 256;

__device__ __forceinline__ std::uint32_t hash(std::uint64_t x) {
  x ^= x >> 33;
  x *= 0xff51afd7ed558ccdULL;
  x ^= x >> 33;
  x *= 0xc4ceb9fe1a85ec53ULL;
  return static_cast<std::uint32_t>((x ^ x >> 33) >> 32);
}

// Box and Muller's normal value number `index`.
__device__ __forceinline__ float normal(std::uint32_t seed, std::uint64_t index) {
  const std::uint64_t key = (static_cast<std::uint64_t>(seed) << 40) + 2 * index;
  const float u = (static_cast<float>(hash(key) >> 8) + 1.0F) * 0x1p-24F;
  const float v = static_cast<float>(hash(key + 1) >> 8) * 0x1p-24F;
  return sqrtf(-2.0F * __logf(u)) * __cosf(6.2831853F * v);
}

__global__ void fill_tiles_kernel(__nv_bfloat16* out, std::int64_t rows, std::int64_t cols,
                                  std::int64_t count, std::uint32_t seed, float scale) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step) {
    const std::int64_t row = i / (16 * cols) * 16 + i % 1024 / 512 * 8 + i % 64 / 8;
    out[i] = __float2bfloat16_rn(row < rows ? scale * normal(seed, i) : 0.0F);
  }
}

__global__ void fill_vector_kernel(float* out, std::int64_t size, std::uint32_t seed, float scale,
                                   float offset) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < size;
       i += step)
    out[i] = offset + scale * normal(seed, i);
}

}  // namespace

void fill_tiles(void* out, std::int64_t rows, std::int64_t cols, std::uint32_t seed, float scale,
                cuda::StreamView stream) {
  const std::int64_t count = (rows + 15) / 16 * 16 * cols;
  fill_tiles_kernel<<<kBlocks, kThreads, 0, stream.get()>>>(static_cast<__nv_bfloat16*>(out), rows,
                                                            cols, count, seed, scale);
  cuda::check(cudaGetLastError(), "fill weights");
}

void fill_vector(float* out, std::int64_t size, std::uint32_t seed, float scale, float offset,
                 cuda::StreamView stream) {
  fill_vector_kernel<<<16, kThreads, 0, stream.get()>>>(out, size, seed, scale, offset);
  cuda::check(cudaGetLastError(), "fill weights");
}

}  // namespace thaw::model
