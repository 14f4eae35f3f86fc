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
#define THAW_REGISTERS_128 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, " \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define THAW_OPERANDS_128(MODE) \
  MODE(d[0]), MODE(d[1]), MODE(d[2]), MODE(d[3]), MODE(d[4]), MODE(d[5]), MODE(d[6]), \
  MODE(d[7]), MODE(d[8]), MODE(d[9]), MODE(d[10]), MODE(d[11]), MODE(d[12]), MODE(d[13]), \
  MODE(d[14]), MODE(d[15]), MODE(d[16]), MODE(d[17]), MODE(d[18]), MODE(d[19]), MODE(d[20]), \
  MODE(d[21]), MODE(d[22]), MODE(d[23]), MODE(d[24]), MODE(d[25]), MODE(d[26]), MODE(d[27]), \
  MODE(d[28]), MODE(d[29]), MODE(d[30]), MODE(d[31]), MODE(d[32]), MODE(d[33]), MODE(d[34]), \
  MODE(d[35]), MODE(d[36]), MODE(d[37]), MODE(d[38]), MODE(d[39]), MODE(d[40]), MODE(d[41]), \
  MODE(d[42]), MODE(d[43]), MODE(d[44]), MODE(d[45]), MODE(d[46]), MODE(d[47]), MODE(d[48]), \
  MODE(d[49]), MODE(d[50]), MODE(d[51]), MODE(d[52]), MODE(d[53]), MODE(d[54]), MODE(d[55]), \
  MODE(d[56]), MODE(d[57]), MODE(d[58]), MODE(d[59]), MODE(d[60]), MODE(d[61]), MODE(d[62]), \
  MODE(d[63]), MODE(d[64]), MODE(d[65]), MODE(d[66]), MODE(d[67]), MODE(d[68]), MODE(d[69]), \
  MODE(d[70]), MODE(d[71]), MODE(d[72]), MODE(d[73]), MODE(d[74]), MODE(d[75]), MODE(d[76]), \
  MODE(d[77]), MODE(d[78]), MODE(d[79]), MODE(d[80]), MODE(d[81]), MODE(d[82]), MODE(d[83]), \
  MODE(d[84]), MODE(d[85]), MODE(d[86]), MODE(d[87]), MODE(d[88]), MODE(d[89]), MODE(d[90]), \
  MODE(d[91]), MODE(d[92]), MODE(d[93]), MODE(d[94]), MODE(d[95]), MODE(d[96]), MODE(d[97]), \
  MODE(d[98]), MODE(d[99]), MODE(d[100]), MODE(d[101]), MODE(d[102]), MODE(d[103]), \
  MODE(d[104]), MODE(d[105]), MODE(d[106]), MODE(d[107]), MODE(d[108]), MODE(d[109]), \
  MODE(d[110]), MODE(d[111]), MODE(d[112]), MODE(d[113]), MODE(d[114]), MODE(d[115]), \
  MODE(d[116]), MODE(d[117]), MODE(d[118]), MODE(d[119]), MODE(d[120]), MODE(d[121]), \
  MODE(d[122]), MODE(d[123]), MODE(d[124]), MODE(d[125]), MODE(d[126]), MODE(d[127])
#define THAW_REGISTERS_64 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define THAW_OPERANDS_64(MODE) \
  MODE(d[0]), MODE(d[1]), MODE(d[2]), MODE(d[3]), MODE(d[4]), MODE(d[5]), MODE(d[6]), \
  MODE(d[7]), MODE(d[8]), MODE(d[9]), MODE(d[10]), MODE(d[11]), MODE(d[12]), MODE(d[13]), \
  MODE(d[14]), MODE(d[15]), MODE(d[16]), MODE(d[17]), MODE(d[18]), MODE(d[19]), MODE(d[20]), \
  MODE(d[21]), MODE(d[22]), MODE(d[23]), MODE(d[24]), MODE(d[25]), MODE(d[26]), MODE(d[27]), \
  MODE(d[28]), MODE(d[29]), MODE(d[30]), MODE(d[31]), MODE(d[32]), MODE(d[33]), MODE(d[34]), \
  MODE(d[35]), MODE(d[36]), MODE(d[37]), MODE(d[38]), MODE(d[39]), MODE(d[40]), MODE(d[41]), \
  MODE(d[42]), MODE(d[43]), MODE(d[44]), MODE(d[45]), MODE(d[46]), MODE(d[47]), MODE(d[48]), \
  MODE(d[49]), MODE(d[50]), MODE(d[51]), MODE(d[52]), MODE(d[53]), MODE(d[54]), MODE(d[55]), \
  MODE(d[56]), MODE(d[57]), MODE(d[58]), MODE(d[59]), MODE(d[60]), MODE(d[61]), MODE(d[62]), \
  MODE(d[63])
#define THAW_REGISTERS_32 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define THAW_OPERANDS_32(MODE) \
  MODE(d[0]), MODE(d[1]), MODE(d[2]), MODE(d[3]), MODE(d[4]), MODE(d[5]), MODE(d[6]), \
  MODE(d[7]), MODE(d[8]), MODE(d[9]), MODE(d[10]), MODE(d[11]), MODE(d[12]), MODE(d[13]), \
  MODE(d[14]), MODE(d[15]), MODE(d[16]), MODE(d[17]), MODE(d[18]), MODE(d[19]), MODE(d[20]), \
  MODE(d[21]), MODE(d[22]), MODE(d[23]), MODE(d[24]), MODE(d[25]), MODE(d[26]), MODE(d[27]), \
  MODE(d[28]), MODE(d[29]), MODE(d[30]), MODE(d[31])

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

// clang-format on

}  // namespace thaw::ops::cuda::wgmma
