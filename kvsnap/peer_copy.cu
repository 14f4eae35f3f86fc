#include <algorithm>
#include <cstdint>

#include "engine/cuda/check.h"
#include "kvsnap/peer_copy.h"

namespace thaw::kvsnap {
namespace {

constexpr int kThreads = 512;
constexpr int kAhead = 8;  // loads in flight a thread: the way to a peer and back is microseconds
constexpr std::size_t kUnitBytes = 16;
constexpr std::uint32_t kSliceUnits = kThreads * kAhead;  // 64 KiB, a block's step
constexpr int kMostBlocks = 132;  // every multiprocessor of a Hopper GPU

struct PieceList {
  const uint4* source[PeerCopy::kMostPieces];
  uint4* destination[PeerCopy::kMostPieces];
  std::uint32_t units[PeerCopy::kMostPieces];
};

__host__ __device__ std::uint32_t slices_of(std::uint32_t units) {
  return (units + kSliceUnits - 1) / kSliceUnits;
}

__global__ void __launch_bounds__(kThreads)
    copy_kernel(const __grid_constant__ PieceList pieces, std::uint32_t num_slices) {
  int piece = 0;
  std::uint32_t first = 0;  // slice of the piece
  for (std::uint32_t slice = blockIdx.x; slice < num_slices; slice += gridDim.x) {
    while (slice - first >= slices_of(pieces.units[piece]))
      first += slices_of(pieces.units[piece++]);
    const std::uint32_t begin = (slice - first) * kSliceUnits + threadIdx.x;
    const std::uint32_t units = pieces.units[piece];
    const uint4* const source = pieces.source[piece];
    uint4* const destination = pieces.destination[piece];
    uint4 held[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
      if (const std::uint32_t at = begin + i * kThreads; at < units) held[i] = __ldcs(source + at);
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
      if (const std::uint32_t at = begin + i * kThreads; at < units)
        __stcs(destination + at, held[i]);
  }
}

}  // namespace

bool PeerCopy::can_copy(std::span<const CopyPiece> copies) {
  const auto aligned = [](const std::byte* at) {
    return at != nullptr && reinterpret_cast<std::uintptr_t>(at) % kUnitBytes == 0;
  };
  return copies.size() <= kMostPieces && std::ranges::all_of(copies, [&](const CopyPiece& copy) {
           return aligned(copy.source) && aligned(copy.destination) &&
                  copy.size_bytes % kUnitBytes == 0 && copy.size_bytes / kUnitBytes <= 0x7fffffff;
         });
}

void PeerCopy::enqueue(std::span<const CopyPiece> copies, cuda::StreamView stream) {
  PieceList list{};
  std::uint32_t num_slices = 0;
  for (std::size_t i = 0; i < copies.size(); ++i) {
    list.source[i] = reinterpret_cast<const uint4*>(copies[i].source);
    list.destination[i] = reinterpret_cast<uint4*>(copies[i].destination);
    list.units[i] = static_cast<std::uint32_t>(copies[i].size_bytes / kUnitBytes);
    num_slices += slices_of(list.units[i]);
  }
  if (num_slices == 0) return;
  const auto blocks = std::min<std::uint32_t>(num_slices, kMostBlocks);
  copy_kernel<<<blocks, kThreads, 0, stream.get()>>>(list, num_slices);
  cuda::check(cudaGetLastError(), "copy of KV blocks from a peer");
}

}  // namespace thaw::kvsnap
