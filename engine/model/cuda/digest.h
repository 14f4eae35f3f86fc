#pragma once

// Between the files of device_image; not for others.

#include <cstddef>
#include <cstdint>

#include "engine/cuda/stream.h"

#ifdef __CUDACC__
#define THAW_DIGEST_FUNCTION __host__ __device__ inline
#else
#define THAW_DIGEST_FUNCTION inline
#endif

namespace thaw::model::digest {

// A chunk is dealt to kLanes lanes in units of 16 bytes, unit u to lane u mod kLanes. A lane mixes
// its units one after the other into four words, one for each word of a unit. A chunk's digest is
// the sum modulo 2^64 of what the lanes end with, each avalanched together with its number: the
// order of that sum does not matter, so it may be formed in any.

inline constexpr int kLanes = 512;
inline constexpr std::size_t kUnitBytes = 16;

struct Lane {
  std::uint32_t words[4] = {0x9e3779b9U, 0x85ebca6bU, 0xc2b2ae35U, 0x27d4eb2fU};
};

/// One to one in `word` and in `state`, so a single damaged word always shows.
THAW_DIGEST_FUNCTION std::uint32_t mix_word(std::uint32_t state, std::uint32_t word) {
  state += word * 0x85ebca77U;
  state = state << 13 | state >> 19;
  return state * 0x9e3779b1U;
}

THAW_DIGEST_FUNCTION std::uint64_t avalanche(std::uint64_t x) {
  x ^= x >> 33;
  x *= 0xff51afd7ed558ccdULL;
  x ^= x >> 33;
  x *= 0xc4ceb9fe1a85ec53ULL;
  return x ^ x >> 33;
}

/// What a lane adds to the digest of its chunk.
THAW_DIGEST_FUNCTION std::uint64_t finish(const Lane& lane, int index) {
  const std::uint64_t low = lane.words[0] | static_cast<std::uint64_t>(lane.words[1]) << 32;
  const std::uint64_t high = lane.words[2] | static_cast<std::uint64_t>(lane.words[3]) << 32;
  return avalanche(avalanche(low + static_cast<std::uint64_t>(index) * 0x9e3779b97f4a7c15ULL) ^
                   high);
}

/// Digests of all chunks of `bytes` bytes at `data` (16-byte aligned) to `out`, device memory.
/// Enqueues only. Throws where the launch fails.
void enqueue(const std::byte* data, std::size_t bytes, std::size_t chunk_bytes, std::uint64_t* out,
             cuda::StreamView stream);

}  // namespace thaw::model::digest
