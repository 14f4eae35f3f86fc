#include <algorithm>
#include <vector>

#include "engine/base/crc32c.h"
#include "engine/cuda/check.h"
#include "kvsnap/device_checksum.h"

// The remainder of a message is a sum over its words w[i]: w[i] * x^(32 * words from i to the end),
// modulo the polynomial. Thread t of 256 takes the units of 16 bytes t, t + 256, ..., as if zeros
// stood before the message where their number is no multiple of 256, and has one sum for each of a
// unit's four words: sum = sum * x^32768 + word. The product with that constant is four look-ups,
// one for each byte of the sum. At the end each sum is multiplied by what stands behind its word.

namespace thaw::kvsnap {
namespace {

constexpr int kThreads = 256;
constexpr std::size_t kUnitBytes = 16;
constexpr int kAhead = 4;  // loads in flight a thread
constexpr int kStepEntries = 4 * 256;
constexpr std::uint32_t kPolynomial = 0x82F63B78;  // bit-reversed, as all of them

struct SliceList {
  const uint4* data[DeviceChecksum::kMostSlices];
  std::uint32_t units[DeviceChecksum::kMostSlices];
};

__device__ std::uint32_t multiply(std::uint32_t a, std::uint32_t b) {
  std::uint32_t product = 0;
#pragma unroll
  for (int bit = 31; bit >= 0; --bit) {
    if ((a >> bit & 1) != 0) product ^= b;
    b = (b & 1) != 0 ? (b >> 1) ^ kPolynomial : b >> 1;
  }
  return product;
}

// One block a slice. `tables`: [4][256] of the step, then [kThreads][4] of what stands behind.
__global__ void __launch_bounds__(kThreads)
    checksum_kernel(const __grid_constant__ SliceList slices, const std::uint32_t* tables,
                    std::uint32_t* out) {
  __shared__ std::uint32_t step[4][256];
  __shared__ std::uint32_t parts[kThreads / 32];
  const int thread = static_cast<int>(threadIdx.x);
  for (int i = thread; i < kStepEntries; i += kThreads)
    step[i / 256][i % 256] = tables[i];
  __syncthreads();
  const uint4* const data = slices.data[blockIdx.x];
  const int units = static_cast<int>(slices.units[blockIdx.x]);
  const int rounds = (units + kThreads - 1) / kThreads;
  const int zeros = rounds * kThreads - units;
  std::uint32_t sums[4] = {};
  const auto add = [&](int i, std::uint32_t word) {
    const std::uint32_t s = sums[i];
    sums[i] = step[0][s & 0xff] ^ step[1][s >> 8 & 0xff] ^ step[2][s >> 16 & 0xff] ^
              step[3][s >> 24] ^ word;
  };
  for (int round = 0; round < rounds; round += kAhead) {
    uint4 held[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int unit = (round + i) * kThreads + thread - zeros;
      held[i] = round + i < rounds && unit >= 0 ? __ldcs(data + unit) : uint4{};
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (round + i >= rounds) break;
      add(0, held[i].x);
      add(1, held[i].y);
      add(2, held[i].z);
      add(3, held[i].w);
    }
  }
  std::uint32_t sum = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i)
    sum ^= multiply(tables[kStepEntries + thread * 4 + i], sums[i]);
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2)
    sum ^= __shfl_xor_sync(0xffffffff, sum, offset);
  if (thread % 32 == 0) parts[thread / 32] = sum;
  __syncthreads();
  if (thread != 0) return;
  for (int i = 1; i < kThreads / 32; ++i)
    sum ^= parts[i];
  out[blockIdx.x] = sum;
}

const std::byte* end_of(const CopyPiece& copy, DeviceChecksum::End end) {
  return end == DeviceChecksum::End::kSource ? copy.source : copy.destination;
}

/// f(copy, offset, size) for each slice of the copies, in order.
template <typename F>
void for_each_slice(std::span<const CopyPiece> copies, F&& f) {
  for (const CopyPiece& copy : copies) {
    for (std::size_t at = 0; at < copy.size_bytes; at += DeviceChecksum::kSliceBytes)
      f(copy, at, std::min(DeviceChecksum::kSliceBytes, copy.size_bytes - at));
  }
}

}  // namespace

DeviceChecksum::DeviceChecksum(cuda::StreamView stream) {
  std::vector<std::uint32_t> tables;
  // Appending n bytes multiplies a remainder by x^(8n).
  const Crc32cCombiner step(kThreads * kUnitBytes);
  for (int byte = 0; byte < 4; ++byte)
    for (std::uint32_t value = 0; value < 256; ++value)
      tables.push_back(step(value << (8 * byte), 0));
  constexpr std::uint32_t kOne = 0x80000000;
  for (std::size_t word = 0; word < kThreads * 4; ++word)
    tables.push_back(Crc32cCombiner(4 * (kThreads * 4 - word))(kOne, 0));
  tables_ = {tables.size(), stream};
  cuda::copy_to_device<std::uint32_t>(tables, tables_, stream);
  stream.synchronize();
}

bool DeviceChecksum::can_check(std::span<const CopyPiece> copies, End end) {
  std::size_t slices = 0;
  for (const CopyPiece& copy : copies) {
    if (copy.destination == nullptr || copy.size_bytes % kUnitBytes != 0 ||
        reinterpret_cast<std::uintptr_t>(end_of(copy, end)) % kUnitBytes != 0)
      return false;
    slices += (copy.size_bytes + kSliceBytes - 1) / kSliceBytes;
  }
  return slices <= kMostSlices;
}

void DeviceChecksum::enqueue(std::span<const CopyPiece> copies, End end, Results& results,
                             cuda::StreamView stream) const {
  SliceList list{};
  unsigned count = 0;
  for_each_slice(copies, [&](const CopyPiece& copy, std::size_t at, std::size_t size) {
    list.data[count] = reinterpret_cast<const uint4*>(end_of(copy, end) + at);
    list.units[count] = static_cast<std::uint32_t>(size / kUnitBytes);
    ++count;
  });
  if (count == 0) return;
  checksum_kernel<<<count, kThreads, 0, stream.get()>>>(list, tables_.data(), results.data());
  cuda::check(cudaGetLastError(), "checksum of KV blocks");
}

std::uint32_t DeviceChecksum::checksum(std::span<const CopyPiece> copies, const Results& results) {
  static const Crc32cCombiner append_slice(kSliceBytes);
  constexpr std::uint32_t kOnes = 0xffffffff;  // where a checksum begins, and what it is xored with
  std::uint32_t crc = 0;
  std::size_t slice = 0;
  for_each_slice(copies, [&](const CopyPiece& /*copy*/, std::size_t /*at*/, std::size_t size) {
    const Crc32cCombiner append = size == kSliceBytes ? append_slice : Crc32cCombiner(size);
    crc = append(crc, results[slice++] ^ append(kOnes, kOnes));
  });
  return crc;
}

}  // namespace thaw::kvsnap
