#pragma once

#include <cstdint>

#include "engine/ops/cuda/ptx.cuh"

// wgmma: the tensor-core instruction of a warpgroup (four warps, 64 rows), sm_90a. It reads its
// operands from shared memory while the warps go on, so that every use is bracketed: fence,
// products, commit, wait.

namespace thaw::ops::cuda::wgmma {

/// Accumulators and registers written before are in order with the products that follow.
__device__ __forceinline__ void fence() {
#if THAW_HOPPER
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

__device__ __forceinline__ void commit() {
#if THAW_HOPPER
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

/// Waits until at most `Pending` of the committed groups are unfinished.
template <int Pending>
__device__ __forceinline__ void wait() {
#if THAW_HOPPER
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
#endif
}

/// Describes core matrices in shared memory without swizzle. K-major (rows of 8 k): `leading` is
/// the distance of neighbours along K, `stride` along the rows. Read transposed (rows of 8 n),
/// `leading` is along K and `stride` along N too.
__device__ __forceinline__ std::uint64_t descriptor(std::uint32_t address, std::uint32_t leading,
                                                    std::uint32_t stride) {
  return static_cast<std::uint64_t>((address & 0x3ffff) >> 4) |
         static_cast<std::uint64_t>(leading >> 4) << 16 |
         static_cast<std::uint64_t>(stride >> 4) << 32;
}

/// A descriptor `bytes` further on.
__device__ __forceinline__ std::uint64_t advance(std::uint64_t descriptor, std::uint32_t bytes) {
  return descriptor + (bytes >> 4);
}

// clang-format off

// The registers of an accumulator, as the instruction lists them and as operands; by MODE they are
// added to or written alone.
#define THAW_ADDED(x) "+f"(x)
#define THAW_WRITTEN(x) "=f"(x)
#define THAW_REGISTERS_32 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define THAW_REGISTERS_64 \
  THAW_REGISTERS_32 ", " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define THAW_REGISTERS_128 \
  THAW_REGISTERS_64 ", " \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define THAW_OPERANDS_FROM_8(MODE, i) \
  MODE(d[i]), MODE(d[i + 1]), MODE(d[i + 2]), MODE(d[i + 3]), MODE(d[i + 4]), MODE(d[i + 5]), \
  MODE(d[i + 6]), MODE(d[i + 7])
#define THAW_OPERANDS_FROM_32(MODE, i) \
  THAW_OPERANDS_FROM_8(MODE, i), THAW_OPERANDS_FROM_8(MODE, i + 8), \
  THAW_OPERANDS_FROM_8(MODE, i + 16), THAW_OPERANDS_FROM_8(MODE, i + 24)
#define THAW_OPERANDS_32(MODE) THAW_OPERANDS_FROM_32(MODE, 0)
#define THAW_OPERANDS_64(MODE) THAW_OPERANDS_32(MODE), THAW_OPERANDS_FROM_32(MODE, 32)
#define THAW_OPERANDS_128(MODE) \
  THAW_OPERANDS_64(MODE), THAW_OPERANDS_FROM_32(MODE, 64), THAW_OPERANDS_FROM_32(MODE, 96)

/// d += a * b^T: 64 x 256 outputs, one step of k16, both operands K-major in shared memory. The first
/// step of a sum does without what d held, as if it were +0.
template <bool kFirst = false>
__device__ __forceinline__ void product(float (&d)[128], std::uint64_t a, std::uint64_t b) {
#if THAW_HOPPER
  if constexpr (kFirst)
    asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" THAW_REGISTERS_128 "}, %128, %129, 0, 1, 1, 0, 0;\n"
                 : THAW_OPERANDS_128(THAW_WRITTEN) : "l"(a), "l"(b));
  else
    asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" THAW_REGISTERS_128 "}, %128, %129, 1, 1, 1, 0, 0;\n"
                 : THAW_OPERANDS_128(THAW_ADDED) : "l"(a), "l"(b));
#endif
}

/// d += a * b^T: 64 x 128 outputs, one step of k16, both operands K-major in shared memory. The first
/// step of a sum does without what d held, as if it were +0.
template <bool kFirst = false>
__device__ __forceinline__ void product(float (&d)[64], std::uint64_t a, std::uint64_t b) {
#if THAW_HOPPER
  if constexpr (kFirst)
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" THAW_REGISTERS_64 "}, %64, %65, 0, 1, 1, 0, 0;\n"
                 : THAW_OPERANDS_64(THAW_WRITTEN) : "l"(a), "l"(b));
  else
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" THAW_REGISTERS_64 "}, %64, %65, 1, 1, 1, 0, 0;\n"
                 : THAW_OPERANDS_64(THAW_ADDED) : "l"(a), "l"(b));
#endif
}

/// d += a * b^T: 64 x 64 outputs, one step of k16, both operands K-major in shared memory. The first
/// step of a sum does without what d held, as if it were +0.
template <bool kFirst = false>
__device__ __forceinline__ void product(float (&d)[32], std::uint64_t a, std::uint64_t b) {
#if THAW_HOPPER
  if constexpr (kFirst)
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" THAW_REGISTERS_32 "}, %32, %33, 0, 1, 1, 0, 0;\n"
                 : THAW_OPERANDS_32(THAW_WRITTEN) : "l"(a), "l"(b));
  else
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" THAW_REGISTERS_32 "}, %32, %33, 1, 1, 1, 0, 0;\n"
                 : THAW_OPERANDS_32(THAW_ADDED) : "l"(a), "l"(b));
#endif
}

/// d += a * b: 64 x 128 outputs, one step of k16, a in registers (mma fragment order), b with rows along N.
template <bool kFirst = false>
__device__ __forceinline__ void product_transposed(float (&d)[64], const std::uint32_t* a, std::uint64_t b) {
#if THAW_HOPPER
  if constexpr (kFirst)
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" THAW_REGISTERS_64 "}, {%64, %65, %66, %67}, %68, 0, 1, 1, 1;\n"
                 : THAW_OPERANDS_64(THAW_WRITTEN) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  else
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" THAW_REGISTERS_64 "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;\n"
                 : THAW_OPERANDS_64(THAW_ADDED) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
#endif
}

/// d += a * b: 64 x 64 outputs, one step of k16, a in registers (mma fragment order), b with rows along N.
template <bool kFirst = false>
__device__ __forceinline__ void product_transposed(float (&d)[32], const std::uint32_t* a, std::uint64_t b) {
#if THAW_HOPPER
  if constexpr (kFirst)
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" THAW_REGISTERS_32 "}, {%32, %33, %34, %35}, %36, 0, 1, 1, 1;\n"
                 : THAW_OPERANDS_32(THAW_WRITTEN) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  else
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" THAW_REGISTERS_32 "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;\n"
                 : THAW_OPERANDS_32(THAW_ADDED) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
#endif
}

#undef THAW_ADDED
#undef THAW_WRITTEN
#undef THAW_REGISTERS_128
#undef THAW_OPERANDS_128
#undef THAW_REGISTERS_64
#undef THAW_OPERANDS_64
#undef THAW_REGISTERS_32
#undef THAW_OPERANDS_32
#undef THAW_OPERANDS_FROM_32
#undef THAW_OPERANDS_FROM_8

// clang-format on

}  // namespace thaw::ops::cuda::wgmma
