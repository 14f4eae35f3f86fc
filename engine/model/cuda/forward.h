#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "engine/cuda/buffer.h"
#include "engine/model/config.h"
#include "engine/model/cuda/cuda_weights.h"
#include "engine/model/tensor_parallel.h"
#include "engine/ops/cuda/attention.h"
#include "engine/ops/cuda/device.h"
#include "engine/ops/cuda/draw.h"
#include "engine/ops/cuda/exchange.h"
#include "engine/ops/cuda/linear.h"

namespace thaw::model {

/// The largest step that the buffers serve.
struct ForwardLimits {
  int max_rows = 0;
  int max_tail_rows = 0;  ///< rows that go through head and draw together; a multiple of 64
  int max_positions = 0;
  std::size_t max_partials = 0;  ///< of the attention plan
};

/// Where a step's time goes, for probes.
enum class StepPart {
  kIds,
  kEmbedding,
  kNorm,
  kQkv,
  kRope,
  kAttention,
  kOut,
  kGateUp,
  kDown,
  kGather,
  kHead,
  kDraw,
  kExchange,
};

/// An attention plan in device memory, and what it holds work for.
struct ForwardPlan {
  const std::int32_t* words = nullptr;
  bool has_tiles = false;  ///< for the prefill kernel
  bool has_items = true;  ///< for the decode kernel
};

/// Windows of a model's layers: layers with the same one share an attention plan.
struct LayerWindows {
  LayerWindows(const ModelConfig& config, int max_positions);
  std::vector<int> windows;  ///< the different ones; 0: all keys
  std::vector<int> of_layer;  ///< [num_layers]: index in `windows`
};

/// The most rows that go through the last layer alone.
inline constexpr int kMostAloneRows = ops::cuda::kTokenTile;

/// Whether only the rows with logits go through the last layer, of whose other rows nothing but
/// keys and values is wanted: where they are few among many, as at the end of a prompt.
constexpr bool goes_on_alone(int num_rows, int num_logit_rows) {
  return num_rows >= 256 && num_logit_rows > 0 && num_logit_rows <= kMostAloneRows &&
         4 * num_logit_rows <= num_rows;
}

/// The logit rows of a step where they go on alone, as a step of their own.
struct ForwardTail {
  const std::int32_t* positions = nullptr;  ///< [num_logit_rows]
  const BlockId* blocks = nullptr;  ///< [num_logit_rows], all -1: their keys have been stored
  ForwardPlan plan;  ///< of the last layer's window
  ops::cuda::ItemWidth width = ops::cuda::ItemWidth::kNarrow;
};

/// One step's inputs, all in device memory.
struct ForwardInputs {
  int num_rows = 0;
  int num_logit_rows = 0;
  const std::int32_t* ids = nullptr;  ///< [num_rows] (ops/cuda/rows.h)
  const std::int32_t* positions = nullptr;  ///< [num_rows]
  const BlockId* blocks = nullptr;  ///< [num_rows]
  /// [num_logit_rows], ascending; not read where every row is one.
  const std::int32_t* logit_rows = nullptr;
  std::vector<ForwardPlan> plans;  ///< one for each window of LayerWindows
  ops::cuda::ItemWidth width = ops::cuda::ItemWidth::kNarrow;  ///< of all plans
  ForwardTail tail;  ///< where goes_on_alone()
  /// [num_logit_rows]: how each is drawn.
  const ops::cuda::DrawRow* draws = nullptr;
  bool has_draws = true;  ///< whether any row is drawn
};

/// The decoder on a GPU: buffers for one step, and the operations of that step in order. It
/// allocates when it is made and never again, never synchronises, and may be captured in a graph.
/// Not thread-safe: one stream runs its steps one after the other.
///
/// As one rank of several it computes its outputs of every matrix (engine/model/tensor_parallel.h)
/// and has the others' gathered: all ranks must enqueue the same steps. Every rank ends with all
/// logits, and draws the same tokens from them.
class Forward {
 public:
  /// `weights` and `kv` are the rank's; `exchange` is connected, of at least exchange_bytes(), and
  /// null for one rank. All must outlive it. Throws where the device is full.
  Forward(const ops::CudaDevice& device, const ModelConfig& config, const CudaWeights& weights,
          const ops::cuda::DeviceKv& kv, const ForwardLimits& limits,
          ops::cuda::LinearKernel kernel, TensorParallel tp, const ops::cuda::Exchange* exchange,
          cuda::StreamView stream);

  /// Device memory that it takes, the exchange apart.
  static std::size_t device_bytes(const ModelConfig& config, const ForwardLimits& limits,
                                  TensorParallel tp);
  /// Bytes of the exchange that it takes; 0 for one rank.
  static std::size_t exchange_bytes(const ModelConfig& config, const ForwardLimits& limits,
                                    TensorParallel tp);

  /// Enqueues the whole model. Rows whose logits are wanted go through the last layer in groups of
  /// max_tail_rows; after each, `on_logits(first, count)` may enqueue copies out of logits().
  /// Throws where a launch fails.
  void enqueue(const ForwardInputs& inputs,
               const std::function<void(int first, int count)>& on_logits, cuda::StreamView stream);

  /// Draws every logit row of `inputs` from logits(), after an enqueue() with has_draws off.
  /// REQUIRES: at most max_tail_rows. `masks`: [*][draw_mask_words], one for each that mask_of_row
  /// names.
  void draw(const ForwardInputs& inputs, const std::int32_t* mask_of_row,
            const std::uint32_t* masks, cuda::StreamView stream);

  /// [max_tail_rows][vocab] float32: of the last group.
  const float* logits() const { return logits_; }
  /// [max_rows]: by logit row, what the step drew.
  const std::int32_t* drawn() const { return drawn_.data(); }
  const LayerWindows& windows() const { return windows_; }
  int max_drawn() const { return limits_.max_rows; }

  /// Called after each operation has been enqueued, to time them one by one. Not while capturing.
  void set_probe(std::function<void(StepPart)> probe) { probe_ = std::move(probe); }

 private:
  /// Rows that a layer projects: normed, and where their keys and values belong.
  struct ProjectedRows {
    ops::cuda::Tiles x;
    int num_rows = 0;
    const std::int32_t* positions = nullptr;
    const BlockId* blocks = nullptr;
  };
  enum class Heads { kAll, kKeysAndValues };
  void project(int layer, const ProjectedRows& rows, Heads heads, cuda::StreamView stream);
  void attend(int layer, const ForwardPlan& plan, ops::cuda::ItemWidth width, ops::cuda::Tiles out,
              cuda::StreamView stream);
  void finish_layer(int layer, int num_rows, float* x, ops::cuda::Tiles attended_part,
                    ops::cuda::Tiles attended, cuda::StreamView stream);
  /// The last layer of a group of logit rows from their attention, or from their norm, on.
  void tail(const ForwardInputs& inputs, int first, int count, cuda::StreamView stream);
  ops::cuda::DrawParams draw_params(const ForwardInputs& inputs, int first, int count);
  enum class Columns { kWhole, kOwn };  ///< of the residual stream that are up to date
  void norm(const float* weight, int num_rows, float* x, Columns columns, cuda::StreamView stream);
  /// Whether linears of so many rows store their outputs in the other ranks' matrices as well,
  /// while they compute; meet_peers() stands for the exchange then: all ranks have come so far.
  bool pushes(int num_rows) const;
  void meet_peers(cuda::StreamView stream);
  /// Whether linears of so many rows send what they compute as packets of the exchange that
  /// follows: the residual stream's, the gated's.
  bool sends_rows(int num_rows) const;
  bool sends_gated(int num_rows) const;
  /// Both do nothing for one rank, whose part is the whole.
  void gather_rows_of(float* x, int num_rows, int cols, const std::vector<int>& bounds,
                      cuda::StreamView stream);
  void gather_tiles_of(ops::cuda::Tiles part, ops::cuda::Tiles whole, int num_rows,
                       const std::vector<int>& bounds, cuda::StreamView stream);
  void linear(StepPart part, const ops::cuda::TiledWeight& weight, ops::cuda::Tiles x, int num_rows,
              ops::cuda::Epilogue epilogue, void* out, std::int64_t out_stride, const float* bias,
              cuda::StreamView stream, const ops::cuda::RopeAndStoreParams* heads = nullptr);
  void done(StepPart part) {
    if (probe_) probe_(part);
  }
  ops::cuda::AttentionShape shape_of(int layer) const;
  int own(const std::vector<int>& bounds) const {
    return bounds[static_cast<std::size_t>(tp_.rank) + 1] - first_of(bounds);
  }
  int first_of(const std::vector<int>& bounds) const {
    return bounds[static_cast<std::size_t>(tp_.rank)];
  }
  int q_size() const { return own(bounds_.attended); }
  int qkv_size() const { return q_size() + 2 * own(bounds_.kv_heads) * config_.head_dim; }

  const ops::CudaDevice& device_;
  const ModelConfig config_;
  const CudaWeights& weights_;
  const ops::cuda::DeviceKv kv_;
  const ForwardLimits limits_;
  const ops::cuda::LinearKernel kernel_;
  const LayerWindows windows_;
  const TensorParallel tp_;
  const ShardBounds bounds_;
  const ops::cuda::Exchange* const exchange_;
  std::vector<std::int64_t> copies_;  ///< from the own region to the others', bytes
  std::uint32_t num_exchanges_ = 0;  ///< of the step that is being enqueued

  cuda::DeviceBuffer<std::int32_t> ids_;  // [rows]
  cuda::DeviceBuffer<ops::cuda::Bf16> normed_;  // tiles [rows, hidden]
  cuda::DeviceBuffer<ops::cuda::Bf16> qkv_;  // [rows, own qkv]
  cuda::DeviceBuffer<float> partials_;
  cuda::DeviceBuffer<ops::cuda::Bf16> tail_normed_;  // of rows that go on alone
  cuda::DeviceBuffer<std::uint8_t> bad_values_;  // RopeAndStoreParams
  cuda::DeviceBuffer<std::int32_t> drawn_;  // [2, rows]
  cuda::DeviceBuffer<double> draw_workspace_;
  cuda::DeviceBuffer<float> cos_;  // [positions, rope.dim / 2]
  cuda::DeviceBuffer<float> sin_;
  // What ranks gather, in the exchange; for one rank in a buffer.
  cuda::DeviceBuffer<std::byte> gathered_;
  float* x_ = nullptr;  // [rows, hidden] the residual stream
  ops::cuda::Bf16* attended_ = nullptr;  // tiles [rows, q]
  ops::cuda::Bf16* gated_ = nullptr;  // tiles [rows, intermediate]
  float* tail_x_ = nullptr;  // [tail rows, hidden]
  ops::cuda::Bf16* tail_attended_ = nullptr;  // tiles [tail rows, q]
  float* logits_ = nullptr;  // [tail rows, vocab]
  // The rank's own columns of tiles; for one rank the whole.
  cuda::DeviceBuffer<ops::cuda::Bf16> parts_;
  ops::cuda::Tiles attended_part_;  // [rows, own q]
  ops::cuda::Tiles gated_part_;  // [rows, own intermediate]
  ops::cuda::Tiles tail_attended_part_;  // [tail rows, own q]
  std::function<void(StepPart)> probe_;
};

}  // namespace thaw::model
