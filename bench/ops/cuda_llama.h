#pragma once

#include <memory>
#include <vector>

#include "bench/ops/cuda_ceilings.h"
#include "engine/cuda/buffer.h"
#include "engine/ops/cuda/attention.h"
#include "engine/ops/cuda/linear.h"

// Llama-3.1-8B's shapes and random bf16 weights, for the benches of the CUDA operations.

namespace thaw::bench {

inline constexpr int kLayers = 32;
inline constexpr int kHidden = 4096;
inline constexpr int kFfn = 14336;
inline constexpr int kVocabulary = 128256;
inline constexpr int kMostRows = 4096;
inline constexpr int kRepeats = 21;
inline constexpr ops::cuda::AttentionShape kShape{32, 8, 128};

struct Machine {
  thaw::cuda::Stream stream;
  std::unique_ptr<ops::CudaDevice> device = ops::CudaDevice::create(0).value();
  CudaCeilings ceilings = measure_cuda_ceilings(stream);
};

/// Made at the first call.
Machine& machine();

enum Kind { kQkv, kO, kGateUp, kDown, kHead };
inline constexpr int kRows[] = {6144, kHidden, 2 * kFfn, kHidden, kVocabulary};
inline constexpr int kCols[] = {kHidden, kHidden, kHidden, kFfn, kHidden};

/// All weights of the model, each layer its own: 15 GB, so that no cache holds any.
struct Weights {
  std::vector<thaw::cuda::DeviceBuffer<ops::cuda::Bf16>> all;  ///< four a layer, then the head
  std::vector<Kind> kinds;
  thaw::cuda::DeviceBuffer<ops::cuda::Bf16> x;
  thaw::cuda::DeviceBuffer<float> out;

  Weights();
  ops::cuda::TiledWeight weight(int index) const {
    return {all[index].data(), kRows[kinds[index]], kCols[kinds[index]]};
  }
  /// The linear of weight `index` as a step uses it, on x and out.
  ops::cuda::LinearParams params(int index, int rows) const;
};

const Weights& weights();

/// Sequences at `first` tokens and `rows` rows each on random KV of `layers` layers, their first
/// tokens in blocks of their own or shared.
struct AttentionBatch {
  thaw::cuda::DeviceBuffer<ops::cuda::Bf16> pool;
  thaw::cuda::DeviceBuffer<ops::cuda::Bf16> qkv;  ///< [rows of all][6144]
  thaw::cuda::DeviceBuffer<std::int32_t> plan;
  thaw::cuda::DeviceBuffer<std::int32_t> positions;
  thaw::cuda::DeviceBuffer<BlockId> blocks;  ///< of each row
  thaw::cuda::DeviceBuffer<float> workspace;
  thaw::cuda::DeviceBuffer<ops::cuda::Bf16> out;
  ops::cuda::AttentionParams params;

  AttentionBatch(int layers, int sequences, bool shared, int first, int rows);
};

}  // namespace thaw::bench
