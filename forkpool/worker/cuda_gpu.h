#pragma once

#include <chrono>
#include <cstddef>
#include <memory>
#include <string>

#include "engine/base/result.h"
#include "engine/checkpoint/weight_image.h"
#include "engine/model/config.h"
#include "engine/model/cuda/cuda_model.h"
#include "engine/ops/cuda/device.h"
#include "forkpool/protocol.h"

namespace thaw::forkpool::worker {

/// Left free beside KV and model: kernels that are loaded when they are first used, the driver.
inline constexpr std::size_t kGpuMarginBytes = std::size_t{768} << 20;

/// One GPU of a worker, and what it is to compute. One thread.
struct CudaGpu {
  int ordinal = 0;
  std::string uuid;  ///< what was kept on another GPU is of no use here
  std::unique_ptr<ops::CudaDevice> device;
  model::ModelConfig config;
};

/// `ordinal` is the CUDA runtime's. Errors: kUnsupported for a KV dtype that the kernels do not
/// take or a GPU that they do not run on, and what the driver or the image's document says.
Result<CudaGpu> open_gpu(const InitFrame& init, const checkpoint::WeightImageView& image,
                         int ordinal);

/// Of a model that is not split over ranks.
model::CudaModelOptions model_options(const InitFrame& init);

double milliseconds_since(std::chrono::steady_clock::time_point start);

}  // namespace thaw::forkpool::worker
