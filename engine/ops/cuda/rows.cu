#include <string>

#include "engine/base/error.h"
#include "engine/cuda/check.h"
#include "engine/ops/cuda/ptx.cuh"
#include "engine/ops/cuda/rows.h"

namespace thaw::ops::cuda {
namespace {

constexpr int kResolveThreads = 1024;
constexpr int kGatherThreads = 256;

void require(bool holds, const char* what, std::int64_t value, const char* right) {
  if (!holds)
    throw Exception(make_error(Errc::kInvalidArgument,
                               std::string(what) + " is " + std::to_string(value) + "; " + right));
}

template <typename P>
void launch(void (*kernel)(P), const P& params, int blocks, int threads, const char* what,
            thaw::cuda::StreamView stream) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = stream.get();
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &overlap;
  config.numAttrs = 1;
  thaw::cuda::check(cudaLaunchKernelEx(&config, kernel, params), what);
}

// One block: every reference is read before anything is overwritten.
__global__ void __launch_bounds__(kResolveThreads) resolve_ids_kernel(ResolveIdsParams p) {
  ptx::let_next_kernel_start();
  ptx::wait_for_previous_kernel();
  for (int i = threadIdx.x; i < p.num_rows; i += kResolveThreads) {
    std::int32_t id = p.ids[i];
    if (id <= drawn_reference(0, 0, p.max_drawn)) {
      const int at = drawn_reference(0, 0, p.max_drawn) - id;
      id = at < 2 * p.max_drawn ? p.drawn[at] : kNoToken;
    }
    p.out[i] = id;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < p.max_drawn; i += kResolveThreads)
    p.drawn[p.max_drawn + i] = p.drawn[i];
}

// One block a row.
__global__ void __launch_bounds__(kGatherThreads) gather_rows_kernel(GatherRowsParams p) {
  ptx::let_next_kernel_start();
  ptx::wait_for_previous_kernel();
  const int to = blockIdx.x;
  const int from = p.rows[to];
  const auto* x = reinterpret_cast<const float4*>(p.x + static_cast<std::size_t>(from) * p.cols);
  auto* x_out = reinterpret_cast<float4*>(p.x_out + static_cast<std::size_t>(to) * p.cols);
  for (int i = threadIdx.x; i < p.cols / 4; i += kGatherThreads)
    x_out[i] = x[i];
  // Eight columns of a row lie together in a core matrix.
  for (int col = threadIdx.x * 8; col < p.tiles.cols; col += kGatherThreads * 8)
    *reinterpret_cast<uint4*>(p.tiles_out.data + tiles_index(to, col, p.tiles.cols)) =
        *reinterpret_cast<const uint4*>(p.tiles.data + tiles_index(from, col, p.tiles.cols));
}

}  // namespace

void resolve_ids(const CudaDevice& /*device*/, const ResolveIdsParams& params,
                 thaw::cuda::StreamView stream) {
  require(params.num_rows > 0, "resolve_ids: num_rows", params.num_rows, "it must be at least 1");
  require(params.max_drawn > 0, "resolve_ids: max_drawn", params.max_drawn,
          "it must be at least 1");
  launch(resolve_ids_kernel, params, 1, kResolveThreads, "resolve_ids", stream);
}

void gather_rows(const CudaDevice& /*device*/, const GatherRowsParams& params,
                 thaw::cuda::StreamView stream) {
  require(params.num_rows > 0, "gather_rows: num_rows", params.num_rows, "it must be at least 1");
  require(params.cols > 0 && params.cols % 4 == 0, "gather_rows: cols", params.cols,
          "it must be a multiple of 4");
  require(params.tiles.cols > 0 && params.tiles.cols % kChunk == 0 &&
              params.tiles_out.cols == params.tiles.cols,
          "gather_rows: tiles.cols", params.tiles.cols,
          "it must be a multiple of 64, and that of the output");
  launch(gather_rows_kernel, params, params.num_rows, kGatherThreads, "gather_rows", stream);
}

}  // namespace thaw::ops::cuda
