#pragma once

#include "engine/ops/cuda/exchange.h"

// How kernels store to peers and wait for them.

namespace thaw::ops::cuda::peer {

__device__ __forceinline__ std::uint64_t now_ns() {
  std::uint64_t now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  return now;
}

__device__ __forceinline__ std::uint32_t load_relaxed(const std::uint32_t* at) {
  std::uint32_t value;
  asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(at) : "memory");
  return value;
}

__device__ __forceinline__ std::uint32_t load_acquire(const std::uint32_t* at) {
  std::uint32_t value;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(at) : "memory");
  return value;
}

__device__ __forceinline__ void store_release(std::uint32_t* at, std::uint32_t value) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(at), "r"(value) : "memory");
}

/// Two packets, each 4 bytes of data below the exchange's number: a 64-bit store is never seen in
/// halves, so whoever sees the number has the data.
__device__ __forceinline__ void store_packets(void* at, std::uint32_t first, std::uint32_t second,
                                              std::uint32_t number) {
  const std::uint64_t high = static_cast<std::uint64_t>(number) << 32;
  asm volatile("st.relaxed.sys.global.v2.u64 [%0], {%1, %2};" ::"l"(at), "l"(high | first),
               "l"(high | second)
               : "memory");
}

/// One of a pair.
__device__ __forceinline__ void store_packet(void* at, std::uint32_t data, std::uint32_t number) {
  asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(at),
               "l"(static_cast<std::uint64_t>(number) << 32 | data)
               : "memory");
}

/// The number of the round's first exchange, less one. It changes between rounds, while no kernel
/// of either runs, so that it need not wait for the kernel before: behind a busy memory that is two
/// microseconds.
__device__ __forceinline__ std::uint32_t exchanges_done(const ExchangeView& view) {
  return load_relaxed(reinterpret_cast<const std::uint32_t*>(view.regions[view.rank] + kCounterAt));
}

__device__ __forceinline__ std::byte* landing(const ExchangeView& view, int at_rank, int from_rank,
                                              std::uint32_t number) {
  return view.regions[at_rank] + kLandingAt +
         (static_cast<std::size_t>(number & 1) * view.size + from_rank) * kMostPacketBytes;
}

/// Ends a wait for a rank: when the host says so, another kernel gave up, or time is over.
class Patience {
 public:
  __device__ Patience(const ExchangeView& view, int rank) : view_(view), rank_(rank) {}

  /// False: no more. Looks at clock and host, microseconds away, only now and then.
  __device__ __forceinline__ bool wait_on() {
    if (++polls_ % 512 != 0) return true;
    return look();
  }

 private:
  __device__ __noinline__ bool look() {
    const std::uint64_t now = now_ns();
    if (start_ == 0) start_ = now;
    if (load_relaxed(view_.stop) != 0) return false;
    if (now - start_ < view_.timeout_ns) return true;
    asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(view_.stop), "r"(2U + rank_)
                 : "memory");
    return false;
  }
  const ExchangeView& view_;
  int rank_;
  std::uint32_t polls_ = 0;
  std::uint64_t start_ = 0;
};

/// Two packets of an exchange, once both are there.
__device__ __forceinline__ uint2 load_packets(const void* at, std::uint32_t number,
                                              const ExchangeView& view, int from_rank) {
  Patience patience(view, from_rank);
  std::uint64_t first;
  std::uint64_t second;
  do {
    asm volatile("ld.relaxed.sys.global.v2.u64 {%0, %1}, [%2];"
                 : "=l"(first), "=l"(second)
                 : "l"(at)
                 : "memory");
  } while ((static_cast<std::uint32_t>(first >> 32) != number ||
            static_cast<std::uint32_t>(second >> 32) != number) &&
           patience.wait_on());
  return {static_cast<std::uint32_t>(first), static_cast<std::uint32_t>(second)};
}

}  // namespace thaw::ops::cuda::peer
