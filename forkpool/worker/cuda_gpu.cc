#include "forkpool/worker/cuda_gpu.h"

#include <utility>

#include "engine/cuda/device_info.h"

namespace thaw::forkpool::worker {

Result<CudaGpu> open_gpu(const InitFrame& init, const checkpoint::WeightImageView& image,
                         int ordinal) {
  if (init.kv_dtype != "bf16") {
    return make_error(Errc::kUnsupported,
                      "KV dtype '" + init.kv_dtype + "' on CUDA; its kernels use bf16");
  }
  CudaGpu gpu;
  gpu.ordinal = ordinal;
  auto device = ops::CudaDevice::create(ordinal);
  if (!device) return device.error();
  gpu.device = std::move(*device);
  auto uuid = cuda::device_uuid(ordinal);
  if (!uuid) return uuid.error();
  gpu.uuid = std::move(*uuid);
  auto config = model::ModelConfig::from_json(image.document());
  if (!config) return config.error();
  gpu.config = std::move(*config);
  return gpu;
}

model::CudaModelOptions model_options(const InitFrame& init) {
  model::CudaModelOptions options;
  options.max_positions = static_cast<int>(init.max_model_len);
  options.max_sequences = static_cast<int>(init.max_num_seqs);
  options.max_rows = static_cast<int>(init.prefill_chunk_tokens + init.max_num_seqs);
  return options;
}

double milliseconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
      .count();
}

}  // namespace thaw::forkpool::worker
