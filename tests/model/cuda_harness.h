#pragma once

#include <map>
#include <memory>
#include <span>
#include <vector>

#include "engine/base/memory_map.h"
#include "engine/cuda/buffer.h"
#include "engine/cuda/vmm.h"
#include "engine/model/cuda/cuda_model.h"
#include "engine/model/cuda/random_image.h"
#include "engine/model/source.h"
#include "engine/ops/cuda/device.h"

namespace thaw::model {

/// Weights on the device, for as many models as a test makes of them. Throws where something fails.
class CudaTestWeights {
 public:
  /// Packed on the host and uploaded.
  explicit CudaTestWeights(const ModelSource& source);
  /// Random ones, made on the device; a rank's are its part of the same ones.
  CudaTestWeights(const ModelConfig& config, std::uint32_t seed, float scale = 0.02F,
                  int device = 0, TensorParallel tp = {});

  const ops::CudaDevice& device() const { return *device_; }
  const checkpoint::WeightImageView& image() const { return *image_; }
  cuda::DeviceSpan<std::byte> weights() const { return weights_->span(); }
  const ModelConfig& config() const { return config_; }

 private:
  std::unique_ptr<ops::CudaDevice> device_;
  Mapping memory_;
  std::unique_ptr<checkpoint::WeightImageView> image_;
  std::unique_ptr<cuda::VmmAllocation> weights_;
  ModelConfig config_;
};

using Logits = std::vector<std::vector<float>>;
/// Logits by position.
using LogitsAt = std::map<int, std::vector<float>>;

/// A model on the device with KV memory of its own, all NaN at first, and a trivial block
/// allocator.
class CudaHarness {
 public:
  CudaHarness(const CudaTestWeights& weights, const CudaModelOptions& options, int num_blocks);

  CudaModel& model() { return *model_; }
  const ModelConfig& config() const { return model_->config(); }
  std::vector<BlockId> take_blocks(int count);
  std::vector<BlockId> take_table(int num_tokens);

  /// Launches, collects and copies the logits out: one vector per logit row.
  Logits step(const Batch& batch);
  /// Runs tokens [first, first + count) of a sequence in chunks of `chunk` rows and returns the
  /// logits of those positions that are in `wanted`.
  LogitsAt run(std::span<const TokenId> tokens, const std::vector<BlockId>& table, int first,
               int count, int chunk, std::span<const int> wanted);

 private:
  cuda::Stream stream_;
  cuda::DeviceBuffer<std::byte> kv_;
  std::unique_ptr<CudaModel> model_;
  int blocks_left_;
};

/// A tiny configuration that the kernels have: 3 layers, two KV heads of `head_dim`.
ModelConfig tiny_cuda_config(int head_dim);

}  // namespace thaw::model
