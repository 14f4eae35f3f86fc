#pragma once

#include <cuda.h>
#include <cuda_bf16.h>

#include <cstdint>

// The PTX that the kernels use, one instruction a function. Hopper's own (mbarrier transactions,
// bulk copies) are empty below sm_90: those kernels are compiled there, never launched.

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define THAW_HOPPER 1
#else
#define THAW_HOPPER 0
#endif

namespace thaw::ops::cuda::ptx {

__device__ __forceinline__ std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ void barrier_init(std::uint32_t barrier, std::uint32_t arrivals) {
#if THAW_HOPPER
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
#endif
}

/// Makes initialised barriers visible to the copy engine.
__device__ __forceinline__ void barrier_init_fence() {
#if THAW_HOPPER
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

__device__ __forceinline__ void barrier_arrive(std::uint32_t barrier) {
#if THAW_HOPPER
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
#endif
}

/// Arrives and announces `bytes` that bulk copies will bring; none is right too. Where several
/// producers fill one stage, each arrives with its own bytes, before its copies, and the barrier
/// counts the producers: none of them can fall a phase behind the others.
__device__ __forceinline__ void barrier_expect(std::uint32_t barrier, std::uint32_t bytes) {
#if THAW_HOPPER
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
#endif
}

/// Which block of its cluster this is.
__device__ __forceinline__ int cluster_rank() {
  std::uint32_t rank = 0;
#if THAW_HOPPER
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
  return static_cast<int>(rank);
}

/// Waits for all threads of the cluster's blocks.
__device__ __forceinline__ void cluster_wait() {
#if THAW_HOPPER
  asm volatile(
      "barrier.cluster.arrive.release.aligned;\n"
      "barrier.cluster.wait.acquire.aligned;" ::
          : "memory");
#endif
}

/// Where `address` of this block's shared memory lies in that of the cluster's block `rank`.
__device__ __forceinline__ std::uint32_t address_in(int rank, std::uint32_t address) {
  std::uint32_t there = address;
#if THAW_HOPPER
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
#endif
  return there;
}

/// Arrives at a barrier of another block, as address_in() names it. It orders no ordinary access of
/// this thread for that block: a release for the cluster waits half a microsecond.
__device__ __forceinline__ void barrier_arrive_in(std::uint32_t barrier) {
#if THAW_HOPPER
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
#endif
}

__device__ __forceinline__ void barrier_wait(std::uint32_t barrier, std::uint32_t parity) {
#if THAW_HOPPER
  asm volatile(
      "{\n.reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n}" ::"r"(barrier),
      "r"(parity)
      : "memory");
#endif
}

/// Whether a barrier_wait() would end at once.
__device__ __forceinline__ bool barrier_done(std::uint32_t barrier, std::uint32_t parity) {
  std::uint32_t done = 0;
#if THAW_HOPPER
  asm volatile(
      "{\n.reg .pred done;\n"
      "mbarrier.test_wait.parity.shared::cta.b64 done, [%1], %2;\n"
      "selp.u32 %0, 1, 0, done;\n}"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
#endif
  return done != 0;
}

/// As barrier_wait(), for a wait that is as good as always long: the thread sleeps up to a
/// microsecond at a time, and takes no turns from the warps beside it.
__device__ __forceinline__ void barrier_wait_long(std::uint32_t barrier, std::uint32_t parity) {
#if THAW_HOPPER
  asm volatile(
      "{\n.reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1, %2;\n"
      "@!done bra again;\n}" ::"r"(barrier),
      "r"(parity), "r"(1000)
      : "memory");
#endif
}

/// Copies `bytes` (a multiple of 16, both sides 16-byte aligned) to shared memory; `barrier` counts
/// them when they have landed.
__device__ __forceinline__ void bulk_copy(std::uint32_t to, const void* from, std::uint32_t bytes,
                                          std::uint32_t barrier) {
#if THAW_HOPPER
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(to),
      "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
#endif
}

/// Copies the box of a tensor map at (x, y, z) to shared memory, 128-byte aligned; `barrier` counts
/// the whole box, zeros outside of the tensor included.
__device__ __forceinline__ void tensor_copy(std::uint32_t to, const CUtensorMap* map, int x, int y,
                                            int z, std::uint32_t barrier) {
#if THAW_HOPPER
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, "
      "%3, %4}], [%5];" ::"r"(to),
      "l"(map), "r"(x), "r"(y), "r"(z), "r"(barrier)
      : "memory");
#endif
}

/// As tensor_copy, to the same place of every block of the cluster whose bit is set in `blocks`;
/// the barrier at `barrier` of each counts what it gets.
__device__ __forceinline__ void tensor_copy_shared(std::uint32_t to, const CUtensorMap* map, int x,
                                                   int y, int z, std::uint32_t barrier,
                                                   std::uint16_t blocks) {
#if THAW_HOPPER
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(to),
      "l"(map), "r"(x), "r"(y), "r"(z), "r"(barrier), "h"(blocks)
      : "memory");
#endif
}

/// As bulk_copy, for bytes that are read once: they are the first to leave the second-level cache.
__device__ __forceinline__ void bulk_copy_once(std::uint32_t to, const void* from,
                                               std::uint32_t bytes, std::uint32_t barrier) {
#if THAW_HOPPER
  asm volatile(
      "{\n.reg .b64 policy;\n"
      "createpolicy.fractional.L2::evict_first.b64 policy, 1.0;\n"
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], "
      "[%1], "
      "%2, [%3], policy;\n}" ::"r"(to),
      "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
#endif
}

/// Orders this thread's ordinary stores to shared memory before reads by tensor cores (wgmma) and
/// the copy engine.
__device__ __forceinline__ void fence_shared_proxy() {
#if THAW_HOPPER
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

/// A barrier of `threads` threads of the block, one of 16 by number.
__device__ __forceinline__ void named_barrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/// Counts this thread as one of the `threads` that named_barrier() waits for, and goes on.
__device__ __forceinline__ void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/// Begins to copy 16 bytes to shared memory, or to clear them there.
__device__ __forceinline__ void copy_or_zero(std::uint32_t to, const void* from, bool copy) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(copy ? 16 : 0)
               : "memory");
}

/// Waits for all that this thread began.
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

/// What another block of the device has written with `atomicAdd` behind a __threadfence(), and all
/// that it wrote before.
__device__ __forceinline__ std::int32_t load_acquire(const std::int32_t* at) {
  std::int32_t value = 0;
#if THAW_HOPPER
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(at) : "memory");
#endif
  return value;
}

/// Waits for the kernels before this one in the stream. What does not depend on them (weights) may
/// be read earlier; nothing may be written earlier.
__device__ __forceinline__ void wait_for_previous_kernel() {
#if THAW_HOPPER
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// Lets the next kernel of the stream start its own prologue.
__device__ __forceinline__ void let_next_kernel_start() {
#if THAW_HOPPER
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// Four 8x8 matrices; lane i gives the address of row i % 8 of matrix i / 8.
__device__ __forceinline__ void load_matrices(std::uint32_t (&r)[4], std::uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

/// The same, each matrix transposed.
__device__ __forceinline__ void load_matrices_transposed(std::uint32_t (&r)[4],
                                                         std::uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

/// Transposes the 8x8 matrix that a warp holds in mma fragment order.
__device__ __forceinline__ std::uint32_t transpose_matrix(std::uint32_t value) {
  std::uint32_t out;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(value));
  return out;
}

/// d += a * b: 16 x 8 outputs, one step of k16.
__device__ __forceinline__ void mma(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                    std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, "
      "%9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// 2^x by the special function unit: one result per input, everywhere the same.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// The same, or +0 where nobody asks: without a branch.
__device__ __forceinline__ float exp2_approx_if(bool asked, float x) {
  float y;
  asm("{\n.reg .pred asked;\n"
      "setp.ne.s32 asked, %2, 0;\n"
      "mov.f32 %0, 0f00000000;\n"
      "@asked ex2.approx.ftz.f32 %0, %1;\n}"
      : "=&f"(y)
      : "f"(x), "r"(static_cast<int>(asked)));
  return y;
}

/// 1/x by the special function unit.
__device__ __forceinline__ float rcp_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// Two floats to bf16, nearest even; `low` in the lower half.
__device__ __forceinline__ std::uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const std::uint32_t*>(&pair);
}

}  // namespace thaw::ops::cuda::ptx
