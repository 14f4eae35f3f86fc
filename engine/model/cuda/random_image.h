#pragma once

#include <cstdint>
#include <memory>

#include "engine/base/memory_map.h"
#include "engine/base/result.h"
#include "engine/checkpoint/weight_image.h"
#include "engine/cuda/stream.h"
#include "engine/cuda/vmm.h"
#include "engine/model/config.h"

namespace thaw::model {

/// A weight image for CUDA whose tensors exist in device memory only: random weights for tests and
/// benches of shapes that nobody wants to download. The host has its table.
struct RandomImage {
  Mapping table;  ///< as large as the image, but only its table was ever touched
  std::unique_ptr<checkpoint::WeightImageView> view;  ///< of `table`
  cuda::VmmAllocation weights;
};

/// Matrices of normal values with standard deviation `scale`, vectors of norms from 0.9 to 1.1,
/// biases like matrices; the same seed gives the same bits. Waits for the device. Errors: those of
/// check_cuda_model; kResourceExhausted; kCuda.
Result<RandomImage> make_random_image(const ModelConfig& config, std::uint32_t seed, float scale,
                                      int device, cuda::StreamView stream);

/// Llama-3.1-8B: 32 layers of 32 query and 8 KV heads, vocabulary 128,256, context 131,072.
ModelConfig llama_8b_config();
/// SmolLM2-135M, the default model's shape.
ModelConfig smollm2_135m_config();

}  // namespace thaw::model
