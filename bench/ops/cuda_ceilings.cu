#include <cublas_v2.h>

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "bench/ops/cuda_ceilings.h"
#include "engine/cuda/buffer.h"
#include "engine/cuda/check.h"

namespace thaw::bench {
namespace {

// Four loads in flight a thread; the sum is written only if it is what it never is.
__global__ void __launch_bounds__(512)
    read_kernel(const uint4* from, std::size_t count, unsigned* out) {
  const std::size_t stride = static_cast<std::size_t>(gridDim.x) * 512;
  std::size_t i = blockIdx.x * std::size_t{512} + threadIdx.x;
  unsigned sum = 0;
  for (; i + 3 * stride < count; i += 4 * stride) {
    const uint4 a = __ldg(from + i);
    const uint4 b = __ldg(from + i + stride);
    const uint4 c = __ldg(from + i + 2 * stride);
    const uint4 d = __ldg(from + i + 3 * stride);
    sum ^= a.x ^ b.y ^ c.z ^ d.w;
  }
  if (sum == 0x12345) *out = sum;
}

__global__ void fill_kernel(__nv_bfloat16* out, std::size_t count, float scale, unsigned seed) {
  for (std::size_t i = blockIdx.x * static_cast<std::size_t>(blockDim.x) + threadIdx.x; i < count;
       i += static_cast<std::size_t>(gridDim.x) * blockDim.x) {
    unsigned h = static_cast<unsigned>(i) * 2654435761U ^ static_cast<unsigned>(i >> 32) ^ seed;
    float sum = 0;
    for (int k = 0; k < 4; ++k) {  // four uniforms: near enough to a normal
      h ^= h >> 13;
      h *= 0x5bd1e995U;
      h ^= h >> 15;
      sum += static_cast<float>(h >> 8) * 0x1p-24F - 0.5F;
    }
    out[i] = __float2bfloat16_rn(sum * 1.7320508F * scale);
  }
}

void check_cublas(cublasStatus_t status) {
  if (status != CUBLAS_STATUS_SUCCESS)
    throw std::runtime_error(std::string("cuBLAS: ") + cublasGetStatusName(status));
}

cublasHandle_t handle() {
  static cublasHandle_t made = [] {
    cublasHandle_t h = nullptr;
    check_cublas(cublasCreate(&h));
    static thaw::cuda::Stream stream;
    static thaw::cuda::DeviceBuffer<char> workspace(std::size_t{64} << 20, stream);
    stream.synchronize();
    check_cublas(cublasSetWorkspace(h, workspace.data(), workspace.size()));
    return h;
  }();
  return made;
}

}  // namespace

void fill_normal(__nv_bfloat16* out, std::size_t count, float scale, unsigned seed,
                 thaw::cuda::StreamView stream) {
  fill_kernel<<<1024, 256, 0, stream.get()>>>(out, count, scale, seed);
  thaw::cuda::check(cudaGetLastError(), "fill");
}

void cublas_linear(const void* weight, const void* x, void* out, int rows, int cols, int num_rows,
                   bool float_out, thaw::cuda::StreamView stream) {
  const float one = 1;
  const float zero = 0;
  cublasHandle_t h = handle();
  check_cublas(cublasSetStream(h, stream.get()));
  static thaw::cuda::Stream own;
  static thaw::cuda::DeviceBuffer<char> workspace(std::size_t{64} << 20, own);
  check_cublas(cublasSetWorkspace(h, workspace.data(), workspace.size()));  // SetStream drops it
  check_cublas(cublasGemmEx(h, CUBLAS_OP_T, CUBLAS_OP_N, rows, num_rows, cols, &one, weight,
                            CUDA_R_16BF, cols, x, CUDA_R_16BF, cols, &zero, out,
                            float_out ? CUDA_R_32F : CUDA_R_16BF, rows, CUBLAS_COMPUTE_32F,
                            CUBLAS_GEMM_DEFAULT));
}

double median_milliseconds(int repeats, const std::function<void()>& work,
                           thaw::cuda::StreamView stream) {
  thaw::cuda::Event start(thaw::cuda::Event::Timing::kOn);
  thaw::cuda::Event stop(thaw::cuda::Event::Timing::kOn);
  std::vector<float> times;
  for (int i = 0; i <= repeats; ++i) {
    start.record(stream);
    work();
    stop.record(stream);
    stop.synchronize();
    if (i > 0) times.push_back(stop.milliseconds_since(start));
  }
  std::nth_element(times.begin(), times.begin() + repeats / 2, times.end());
  return times[static_cast<std::size_t>(repeats / 2)];
}

CudaCeilings measure_cuda_ceilings(thaw::cuda::StreamView stream) {
  CudaCeilings ceilings;
  {
    const thaw::cuda::DeviceBuffer<__nv_bfloat16> bytes(std::size_t{4} << 30, stream);
    const thaw::cuda::DeviceBuffer<unsigned> out(1, stream);
    fill_normal(bytes.data(), bytes.size(), 1, 1, stream);
    const double ms = median_milliseconds(
        9,
        [&] {
          read_kernel<<<528, 512, 0, stream.get()>>>(reinterpret_cast<const uint4*>(bytes.data()),
                                                     bytes.size() / 8, out.data());
        },
        stream);
    ceilings.read_bytes_per_second = static_cast<double>(bytes.size()) * 2 / (ms * 1e-3);
  }
  constexpr int kSide = 8192;
  const std::size_t count = static_cast<std::size_t>(kSide) * kSide;
  const thaw::cuda::DeviceBuffer<__nv_bfloat16> a(count, stream);
  const thaw::cuda::DeviceBuffer<__nv_bfloat16> b(count, stream);
  const thaw::cuda::DeviceBuffer<__nv_bfloat16> c(count, stream);
  fill_normal(a.data(), count, 1, 1, stream);
  fill_normal(b.data(), count, 1, 2, stream);
  const double ms = median_milliseconds(
      21, [&] { cublas_linear(a.data(), b.data(), c.data(), kSide, kSide, kSide, false, stream); },
      stream);
  ceilings.flops = 2.0 * kSide * kSide * kSide / (ms * 1e-3);
  return ceilings;
}

}  // namespace thaw::bench
