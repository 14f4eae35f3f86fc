#include <algorithm>

#include "engine/cuda/buffer.h"
#include "engine/cuda/check.h"
#include "engine/ops/cuda/kernels.h"

namespace thaw::ops::cuda {
namespace {

// Each number of tiles that the streaming kernel has an instance for; each size of tiles at the
// last.
constexpr int kCounts[] = {1, 2, 3, 8, 16, 17, 32, 48, 64, 200};
constexpr int kMostRows = 200;

// Values of a hash, with an outlier in a hundred: sums then hold terms of very different size,
// which is where another order of addition shows.
__global__ void fill_kernel(Bf16* out, std::size_t count, std::uint32_t seed, float scale) {
  for (std::size_t i = blockIdx.x * static_cast<std::size_t>(blockDim.x) + threadIdx.x; i < count;
       i += static_cast<std::size_t>(gridDim.x) * blockDim.x) {
    std::uint32_t h = static_cast<std::uint32_t>(i) * 2654435761U ^ seed;
    h ^= h >> 13;
    h *= 0x5bd1e995U;
    h ^= h >> 15;
    float value = (static_cast<float>(h & 0xffff) / 65536.0F - 0.5F) * scale;
    if ((h >> 16) % 101 == 0) value *= 20.0F;
    out[i] = __float2bfloat16_rn(value);
  }
}

__global__ void count_differences_kernel(const std::uint32_t* a, const std::uint32_t* b,
                                         std::size_t count, unsigned long long* differ) {
  unsigned long long own = 0;
  for (std::size_t i = blockIdx.x * static_cast<std::size_t>(blockDim.x) + threadIdx.x; i < count;
       i += static_cast<std::size_t>(gridDim.x) * blockDim.x)
    own += a[i] != b[i] ? 1 : 0;
  if (own != 0) atomicAdd(differ, own);
}

}  // namespace

Result<std::vector<LinearDisagreement>> linear_self_test(const CudaDevice& device,
                                                         std::span<const LinearShape> shapes,
                                                         thaw::cuda::StreamView stream) try {
  std::vector<LinearDisagreement> found;
  for (const LinearShape& shape : shapes) {
    const thaw::cuda::DeviceBuffer<Bf16> weight(weight_elements(shape.rows, shape.cols), stream);
    const thaw::cuda::DeviceBuffer<Bf16> x(tiles_elements(kMostRows, shape.cols), stream);
    const std::size_t most = static_cast<std::size_t>(kMostRows) * shape.rows;
    const thaw::cuda::DeviceBuffer<float> streamed(most, stream);
    const thaw::cuda::DeviceBuffer<float> tiled(most, stream);
    const thaw::cuda::DeviceBuffer<unsigned long long> differ(1, stream);
    fill_kernel<<<512, 256, 0, stream.get()>>>(weight.data(), weight.size(), 1, 0.07F);
    fill_kernel<<<512, 256, 0, stream.get()>>>(x.data(), x.size(), 2, 2.0F);
    thaw::cuda::check(cudaGetLastError(), "linear self-test");
    for (const int num_rows : kCounts) {
      LinearParams params;
      params.weight = {weight.data(), shape.rows, shape.cols};
      params.x = {x.data(), shape.cols};
      params.num_rows = num_rows;
      params.epilogue = Epilogue::kF32;
      params.out_stride = shape.rows;
      params.out = streamed.data();
      params.kernel = LinearKernel::kStream;
      linear(device, params, stream);
      params.out = tiled.data();
      params.kernel = LinearKernel::kTile;
      thaw::cuda::check(
          cudaMemsetAsync(differ.data(), 0, sizeof(unsigned long long), stream.get()));
      // Large tiles are for many rows: one row of tiles of each, and several.
      for (int size = num_rows >= kTokenTile ? 0 : kTileSizes - 1; size < kTileSizes; ++size) {
        thaw::cuda::check(
            cudaMemsetAsync(tiled.data(), 0xff, tiled.size() * sizeof(float), stream.get()));
        linear_tile_of(size, device, params, stream);
        count_differences_kernel<<<512, 256, 0, stream.get()>>>(
            reinterpret_cast<const std::uint32_t*>(streamed.data()),
            reinterpret_cast<const std::uint32_t*>(tiled.data()),
            static_cast<std::size_t>(num_rows) * shape.rows, differ.data());
        thaw::cuda::check(cudaGetLastError(), "linear self-test");
      }
      unsigned long long count = 0;
      thaw::cuda::copy_to_host<unsigned long long>(differ, {&count, 1}, stream);
      stream.synchronize();
      if (count != 0) found.push_back({shape, num_rows, static_cast<std::int64_t>(count)});
    }
  }
  return found;
} catch (const Exception& failure) {
  return failure.error();
}

}  // namespace thaw::ops::cuda
