#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#include "engine/cuda/check.h"
#include "engine/ops/cuda/linear.h"

// How the kernels are chosen, prepared and launched.

namespace thaw::ops::cuda {

/// f.operator()<E>() for the epilogue's own E.
template <typename F>
auto with_epilogue(Epilogue epilogue, F&& f) {
  switch (epilogue) {
    case Epilogue::kBf16:
      return f.template operator()<Epilogue::kBf16>();
    case Epilogue::kF32:
      return f.template operator()<Epilogue::kF32>();
    case Epilogue::kAddF32:
      return f.template operator()<Epilogue::kAddF32>();
    case Epilogue::kSwigluTiles:
      break;
  }
  return f.template operator()<Epilogue::kSwigluTiles>();
}

inline constexpr Epilogue kAllEpilogues[] = {Epilogue::kBf16, Epilogue::kF32, Epilogue::kAddF32,
                                             Epilogue::kSwigluTiles};

/// f.operator()<D>() for a head_dim of 64 or 128.
template <typename F>
auto with_head_dim(int head_dim, F&& f) {
  return head_dim == 64 ? f.template operator()<64>() : f.template operator()<128>();
}

/// Allows the kernel its shared memory. All kernels ask for the same division of the first-level
/// cache, the one with the most shared memory, so that blocks of different kernels may share a
/// multiprocessor.
template <typename K>
void prepare_kernel(K* kernel, std::size_t shared_bytes, const char* what) {
  thaw::cuda::check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                         static_cast<int>(shared_bytes)),
                    what);
  thaw::cuda::check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                         cudaSharedmemCarveoutMaxShared),
                    what);
}

struct LaunchShape {
  int blocks = 1;
  int threads = 1;
  std::size_t shared_bytes = 0;
  int cluster = 1;  ///< blocks that share a cluster
  int rows = 1;  ///< of the grid
};

/// Launches a kernel that may start before the kernel ahead of it in the stream is done: it must
/// wait_for_previous_kernel() before it reads what that one wrote, and before it writes.
template <typename... P>
void launch_early(void (*kernel)(P...), const LaunchShape& shape, cudaStream_t stream,
                  const char* what, const P&... params) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(shape.blocks), static_cast<unsigned>(shape.rows));
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = static_cast<unsigned>(shape.cluster);
  attributes[1].val.clusterDim.y = 1;
  attributes[1].val.clusterDim.z = 1;
  config.attrs = attributes;
  config.numAttrs = shape.cluster > 1 ? 2 : 1;
  thaw::cuda::check(cudaLaunchKernelEx(&config, kernel, params...), what);
}

}  // namespace thaw::ops::cuda
