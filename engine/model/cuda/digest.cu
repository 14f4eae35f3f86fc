#include "engine/cuda/check.h"
#include "engine/model/cuda/digest.h"

namespace thaw::model::digest {
namespace {

constexpr int kAhead = 8;  // loads in flight a thread: what hides the latency of the memory

__device__ __forceinline__ void mix(Lane& lane, const uint4& unit) {
  lane.words[0] = mix_word(lane.words[0], unit.x);
  lane.words[1] = mix_word(lane.words[1], unit.y);
  lane.words[2] = mix_word(lane.words[2], unit.z);
  lane.words[3] = mix_word(lane.words[3], unit.w);
}

// One block a chunk, one thread a lane.
__global__ void __launch_bounds__(kLanes)
    digest_kernel(const uint4* data, std::size_t units, std::size_t chunk_units,
                  std::uint64_t* out) {
  __shared__ std::uint64_t parts[kLanes / 32];
  const std::size_t first = blockIdx.x * chunk_units;
  const int count = static_cast<int>(min(chunk_units, units - first));
  const uint4* const own = data + first;
  const int thread = static_cast<int>(threadIdx.x);
  Lane lane;
  int unit = thread;
  for (; unit + (kAhead - 1) * kLanes < count; unit += kAhead * kLanes) {
    uint4 held[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
      held[i] = __ldcs(own + unit + i * kLanes);
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
      mix(lane, held[i]);
  }
  for (; unit < count; unit += kLanes)
    mix(lane, own[unit]);
  std::uint64_t sum = finish(lane, thread);
  for (int offset = 16; offset > 0; offset /= 2)
    sum += __shfl_xor_sync(0xffffffff, sum, offset);
  if (thread % 32 == 0) parts[thread / 32] = sum;
  __syncthreads();
  if (thread != 0) return;
  for (int i = 1; i < kLanes / 32; ++i)
    sum += parts[i];
  out[blockIdx.x] = sum;
}

}  // namespace

void enqueue(const std::byte* data, std::size_t bytes, std::size_t chunk_bytes, std::uint64_t* out,
             cuda::StreamView stream) {
  const std::size_t chunks = (bytes + chunk_bytes - 1) / chunk_bytes;
  if (chunks == 0) return;
  digest_kernel<<<static_cast<unsigned>(chunks), kLanes, 0, stream.get()>>>(
      reinterpret_cast<const uint4*>(data), bytes / kUnitBytes, chunk_bytes / kUnitBytes, out);
  cuda::check(cudaGetLastError(), "image digest");
}

}  // namespace thaw::model::digest
