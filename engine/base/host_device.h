#pragma once

/// Marks what the compilers of the CPU and of the GPU share.
#ifdef __CUDACC__
#define THAW_HOST_DEVICE __host__ __device__
#else
#define THAW_HOST_DEVICE
#endif
