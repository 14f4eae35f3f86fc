#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "engine/base/result.h"
#include "engine/checkpoint/weight_image.h"
#include "engine/cuda/vmm.h"
#include "engine/model/config.h"
#include "engine/model/cuda/cuda_model.h"
#include "engine/model/tensor_parallel.h"
#include "engine/ops/cuda/device.h"
#include "engine/ops/cuda/exchange.h"
#include "forkpool/protocol.h"
#include "forkpool/worker/cuda_gpu.h"

namespace thaw::forkpool::worker {

/// Weights, KV and model of one rank of a group, on its GPU. Made in the order of the methods:
/// load(), room(), make_model(). One thread.
class CudaRank {
 public:
  /// `kept`: what the pool kept of this rank; only used while it is made, as `image` is.
  CudaRank(const InitFrame& init, const DeviceMemory& kept,
           const checkpoint::WeightImageView& image);

  /// Everything that needs no other rank. Errors name what does not fit: devices, KV dtype, memory.
  Result<void> load(int weights_fd);
  /// KV blocks that this rank has room for; an error where there is none for what was asked.
  Result<std::uint64_t> room() const;
  /// With the exchanges of all ranks, by rank, and as many blocks as every rank has room for.
  Result<std::unique_ptr<model::CudaModel>> make_model(std::uint64_t num_blocks,
                                                       std::span<const int> exchanges);

  ops::cuda::Exchange& exchange() { return *exchange_; }
  const cuda::VmmAllocation& kv() const { return *kv_; }
  bool kv_kept() const { return kv_kept_; }  ///< the pool has it, as it is
  /// What the pool may keep of it: KV always, weights where it has not heard of them; bytes, digest
  /// and descriptors.
  Result<DeviceMemory> memory() const;

  const model::ModelConfig& config() const { return gpu_.config; }
  int ordinal() const { return gpu_.ordinal; }
  const ops::CudaDevice& device() const { return *gpu_.device; }
  double weights_ms() const { return weights_ms_; }
  std::size_t block_bytes() const;  ///< of this rank's part of a block

 private:
  Result<void> load_weights(int fd);
  cuda::DeviceSpan<std::byte> shard_span(std::size_t bytes) const;
  bool adopt_weights(std::size_t bytes);
  void adopt_kv();
  model::CudaModelOptions model_options() const;

  const InitFrame init_;
  const DeviceMemory& kept_;
  const checkpoint::WeightImageView& image_;
  const model::TensorParallel tp_;
  CudaGpu gpu_;
  std::unique_ptr<cuda::VmmAllocation> weights_;
  std::unique_ptr<ops::cuda::Exchange> exchange_;
  std::unique_ptr<cuda::VmmAllocation> kv_;
  Hash128 weights_digest_;
  bool weights_kept_ = false;  ///< the pool has them, as they are
  bool weights_imported_ = false;  ///< intact or not
  bool kv_kept_ = false;
  double weights_ms_ = 0;
};

}  // namespace thaw::forkpool::worker
