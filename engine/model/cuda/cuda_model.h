#pragma once

#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <string>

#include "engine/base/result.h"
#include "engine/checkpoint/weight_image.h"
#include "engine/cuda/buffer.h"
#include "engine/cuda/stream.h"
#include "engine/model/cuda/forward.h"
#include "engine/model/model.h"
#include "engine/model/tensor_parallel.h"
#include "engine/ops/cuda/device.h"
#include "engine/ops/cuda/exchange.h"

namespace thaw::model {

struct CudaModelOptions {
  int max_positions = 0;  ///< 0: the config's
  /// Rows of the largest step: the longest prefill chunk and what decodes beside it.
  int max_rows = 8192;
  int max_sequences = 64;  ///< of one step; decode steps of up to so many run as graphs
  /// (row, split) results of attention that one step may hold; 0: as many as max_sequences rows, or
  /// 256, at max_positions take, at most 16,384.
  std::size_t max_partials = 0;
  std::chrono::milliseconds step_timeout = std::chrono::minutes(1);  ///< for collect()
  bool use_graphs = true;
  /// Compares the two linear kernels first (linear_self_test, some ms); where they disagree one of
  /// them serves all steps, and the log says so.
  bool self_test = true;
  /// As one rank of several: the others are given the same options, batches and block copies, in
  /// the same order, and all of them the same logits.
  TensorParallel tp = {};
  /// Between the ranks, connected, of at least cuda_exchange_bytes(); must outlive the model. Null
  /// for one rank.
  const ops::cuda::Exchange* exchange = nullptr;
};

/// A decoder on a GPU, kernel set `cuda-1`. One stream runs its steps and block copies in order;
/// two steps may be in flight. After an error of the device (kCuda, kDeadlineExceeded) every call
/// fails with it: the process is the unit of recovery.
class CudaModel : public Model {
 public:
  /// The stream of all steps. Whoever copies KV on another one makes that wait, by an event
  /// recorded here, for what was launched before.
  virtual cuda::StreamView stream() const = 0;
  /// Device memory that it took, KV and weights apart.
  virtual std::size_t device_bytes() const = 0;
  /// For benches: called after each operation of a step has been enqueued, on stream(). Steps are
  /// then launched without graphs. Empty: no more.
  virtual void set_probe(std::function<void(StepPart)> probe) = 0;
};

/// Device memory that make_cuda_model() will take for activations, logits, RoPE tables and the
/// inputs of a step: what a KV pool has to leave free besides the weights. For an 8B Llama with
/// 8,192 rows and 64 sequences about 1.1 GiB.
std::size_t cuda_model_bytes(const ModelConfig& config, const CudaModelOptions& options);
/// Exchange::Options::user_bytes that its ranks need besides; 0 for one.
std::size_t cuda_exchange_bytes(const ModelConfig& config, const CudaModelOptions& options);

/// KvView::layout of `config`'s whole KV blocks. A rank's are the same with fewer heads: each of
/// the 2 * num_layers rows of a block holds the heads in order.
std::string cuda_kv_layout(const ModelConfig& config);

/// The model of an image for CUDA (engine/model/cuda_image.h). Of `image` only the table is read;
/// its bytes lie at `weights`, from the first byte on, or where the rank's plan_shard() puts them.
/// `kv` holds whole blocks of kv_block_bytes(rank_heads(config, tp.size), kBF16); the rest is
/// ignored. All of them must outlive the model, as must `device`. Errors: those of
/// check_cuda_model, plan_shard and read_cuda_weights; kInvalidArgument for options or a KV pool
/// that cannot work; kResourceExhausted where the device is full; kCuda.
Result<std::unique_ptr<CudaModel>> make_cuda_model(const ops::CudaDevice& device,
                                                   const checkpoint::WeightImageView& image,
                                                   cuda::DeviceSpan<const std::byte> weights,
                                                   cuda::DeviceSpan<std::byte> kv,
                                                   const CudaModelOptions& options);

}  // namespace thaw::model
