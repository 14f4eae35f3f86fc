#include "engine/model/llama.h"

#include <array>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "engine/model/batch_rows.h"
#include "engine/model/float_buffer.h"
#include "engine/model/rope_table.h"
#include "engine/model/weight_reader.h"
#include "engine/ops/elementwise.h"
#include "engine/ops/linear.h"

namespace thaw::model {
namespace {

/// Steps that may be launched and not collected. One more buffer of logits than that, because the
/// newest collected step's stays valid until the next collect().
constexpr std::uint64_t kMaxInFlight = 2;

struct LayerWeights {
  std::span<const float> attention_norm;  // [hidden]
  ops::WeightView q;  // [num_heads * head_dim, hidden]
  ops::WeightView k;  // [num_kv_heads * head_dim, hidden]
  ops::WeightView v;  // [num_kv_heads * head_dim, hidden]
  ops::WeightView o;  // [hidden, num_heads * head_dim]
  std::span<const float> ffn_norm;  // [hidden]
  ops::WeightView gate;  // [intermediate, hidden]
  ops::WeightView up;  // [intermediate, hidden]
  ops::WeightView down;  // [hidden, intermediate]
};

struct LlamaWeights {
  ops::WeightView token_embedding;  // [vocab, hidden]
  std::vector<LayerWeights> layers;
  std::span<const float> output_norm;  // [hidden]
  ops::WeightView head;  // [vocab, hidden]; the embedding's where tied
  std::span<const float> rope_factors;  // [rotary_dim / 2] or empty
};

LlamaWeights read_weights(WeightReader& reader, const ModelConfig& config) {
  const std::int64_t hidden = config.hidden_size;
  const std::int64_t ffn = config.intermediate_size;
  const std::int64_t q_size = std::int64_t{config.num_heads} * config.head_dim;
  const std::int64_t kv_size = std::int64_t{config.num_kv_heads} * config.head_dim;
  LlamaWeights weights;
  weights.token_embedding = reader.matrix("token_embedding", config.vocab_size, hidden);
  for (int i = 0; i < config.num_layers && !reader.error(); ++i) {
    const std::string name = "layers." + std::to_string(i) + ".";
    LayerWeights layer;
    layer.attention_norm = reader.vector(name + "attention_norm", hidden);
    layer.q = reader.matrix(name + "q", q_size, hidden);
    layer.k = reader.matrix(name + "k", kv_size, hidden);
    layer.v = reader.matrix(name + "v", kv_size, hidden);
    layer.o = reader.matrix(name + "o", hidden, q_size);
    layer.ffn_norm = reader.vector(name + "ffn_norm", hidden);
    layer.gate = reader.matrix(name + "gate", ffn, hidden);
    layer.up = reader.matrix(name + "up", ffn, hidden);
    layer.down = reader.matrix(name + "down", hidden, ffn);
    weights.layers.push_back(layer);
  }
  weights.output_norm = reader.vector("output_norm", hidden);
  weights.head = config.tied_embeddings ? weights.token_embedding
                                        : reader.matrix("head", config.vocab_size, hidden);
  if (config.rope_factors)
    weights.rope_factors = reader.vector("rope_factors", config.rope.dim / 2);
  return weights;
}

/// Activations of one step, float32. Grows to the largest batch seen.
struct Activations {
  FloatBuffer x;  // [rows, hidden] the residual stream
  FloatBuffer normed;  // [rows, hidden]
  FloatBuffer q;  // [rows, num_heads, head_dim]
  FloatBuffer k;  // [rows, num_kv_heads, head_dim]
  FloatBuffer v;  // [rows, num_kv_heads, head_dim]
  FloatBuffer attended;  // [rows, num_heads, head_dim]
  FloatBuffer gate;  // [rows, intermediate]
  FloatBuffer up;  // [rows, intermediate]
  FloatBuffer branch;  // [rows, hidden] what attention or the feed-forward adds to x
};

class Llama final : public Model {
 public:
  Llama(ops::Device& device, ModelConfig config, LlamaWeights weights, const ops::PagedKv& kv,
        const BatchLimits& limits)
      : device_(device),
        config_(std::move(config)),
        weights_(std::move(weights)),
        kv_(kv),
        limits_(limits),
        rope_(config_.rope.theta, config_.rope.dim, config_.rope.half_split,
              weights_.rope_factors) {}

  const ModelConfig& config() const override { return config_; }
  const ops::PagedKv& kv() const override { return kv_; }

  Result<StepHandle> launch(const Batch& batch) override {
    if (launched_ - collected_ == kMaxInFlight) {
      return make_error(Errc::kInvalidArgument, "model: " + std::to_string(kMaxInFlight) +
                                                    " steps wait to be collected; no more may be "
                                                    "launched");
    }
    if (auto assigned = rows_.assign(batch, limits_); !assigned) return std::move(assigned).error();
    reserve();
    Slot& slot = slots_[launched_ % slots_.size()];
    slot.num_rows = static_cast<int>(rows_.logit_rows().size());
    forward(slot.logits.reserve(static_cast<std::size_t>(slot.num_rows) * config_.vocab_size));
    return launched_++;
  }

  Result<StepLogits> collect(StepHandle handle) override {
    if (handle != collected_ || handle >= launched_) {
      return make_error(Errc::kInvalidArgument,
                        "model: step " + std::to_string(handle) + " is not the next to collect");
    }
    const Slot& slot = slots_[collected_++ % slots_.size()];
    const std::size_t size = static_cast<std::size_t>(slot.num_rows) * config_.vocab_size;
    return StepLogits{{slot.logits.data(), size}, slot.num_rows, config_.vocab_size};
  }

 private:
  struct Slot {
    FloatBuffer logits;  // [num_rows, vocab]
    int num_rows = 0;
  };

  int q_size() const { return config_.num_heads * config_.head_dim; }
  int kv_size() const { return config_.num_kv_heads * config_.head_dim; }

  void reserve() {
    const auto rows = static_cast<std::size_t>(rows_.num_rows());
    rope_.reserve(rows_.end_position(), limits_.max_positions);
    a_.x.reserve(rows * config_.hidden_size);
    a_.normed.reserve(rows * config_.hidden_size);
    a_.branch.reserve(rows * config_.hidden_size);
    a_.q.reserve(rows * q_size());
    a_.k.reserve(rows * kv_size());
    a_.v.reserve(rows * kv_size());
    a_.attended.reserve(rows * q_size());
    a_.gate.reserve(rows * config_.intermediate_size);
    a_.up.reserve(rows * config_.intermediate_size);
  }

  /// The whole model, top to bottom. `logits`: [logit rows, vocab].
  void forward(float* logits) {
    ops::embedding(device_, weights_.token_embedding, rows_.token_ids(), a_.x.data());
    int num_rows = rows_.num_rows();
    for (int layer = 0; layer < config_.num_layers; ++layer) {
      const LayerWeights& w = weights_.layers[layer];
      project_qkv(w, num_rows);
      ops::store_kv(device_, kv_, layer, rows_.sequences(), a_.k.data(), a_.v.data());
      if (layer + 1 == config_.num_layers && rows_.logit_rows().empty()) return;
      attend(layer);
      if (layer + 1 == config_.num_layers) num_rows = keep_logit_rows();
      const std::array o = {ops::LinearOutput{w.o, a_.branch.data()}};
      ops::linear(device_, a_.attended.data(), num_rows, o);
      add_branch(num_rows);
      feed_forward(w, num_rows);
      add_branch(num_rows);
    }
    norm(weights_.output_norm, num_rows);
    const std::array head = {ops::LinearOutput{weights_.head, logits}};
    ops::linear_two_step(device_, a_.normed.data(), num_rows, head);
  }

  void project_qkv(const LayerWeights& w, int num_rows) {
    norm(w.attention_norm, num_rows);
    const std::array qkv = {ops::LinearOutput{w.q, a_.q.data()},
                            ops::LinearOutput{w.k, a_.k.data()},
                            ops::LinearOutput{w.v, a_.v.data()}};
    ops::linear_two_step(device_, a_.normed.data(), num_rows, qkv);
    const ops::RopeTable table = rope_.view();
    ops::rope(device_, table, rows_.positions(), config_.num_heads, config_.head_dim, a_.q.data());
    ops::rope(device_, table, rows_.positions(), config_.num_kv_heads, config_.head_dim,
              a_.k.data());
  }

  void attend(int layer) {
    ops::AttentionArgs args;
    args.kv = kv_;
    args.layer = layer;
    args.num_heads = config_.num_heads;
    args.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(config_.head_dim)));
    args.sequences = rows_.sequences();
    args.q = a_.q.data();
    args.out = a_.attended.data();
    ops::attention(device_, args);
  }

  void feed_forward(const LayerWeights& w, int num_rows) {
    norm(w.ffn_norm, num_rows);
    const std::array gate_up = {ops::LinearOutput{w.gate, a_.gate.data()},
                                ops::LinearOutput{w.up, a_.up.data()}};
    ops::linear(device_, a_.normed.data(), num_rows, gate_up);
    ops::swiglu(device_, a_.gate.data(), a_.up.data(),
                std::int64_t{num_rows} * config_.intermediate_size, a_.gate.data());
    const std::array down = {ops::LinearOutput{w.down, a_.branch.data()}};
    ops::linear_two_step(device_, a_.gate.data(), num_rows, down);
  }

  void norm(std::span<const float> weight, int num_rows) {
    ops::rms_norm(device_, a_.x.data(), weight.data(), config_.rms_norm_eps, num_rows,
                  config_.hidden_size, a_.normed.data());
  }

  void add_branch(int num_rows) {
    ops::add_in_place(device_, a_.x.data(), a_.branch.data(),
                      std::int64_t{num_rows} * config_.hidden_size);
  }

  /// After the last attention only the rows whose logits are asked for go on: moves theirs to the
  /// front. A row's number never grows, so moving upwards in order overwrites nothing needed.
  int keep_logit_rows() {
    const auto keep = [this](float* values, std::size_t width) {
      for (std::size_t i = 0; i < rows_.logit_rows().size(); ++i) {
        const auto row = static_cast<std::size_t>(rows_.logit_rows()[i]);
        if (row != i) std::memcpy(values + i * width, values + row * width, width * sizeof(float));
      }
    };
    keep(a_.x.data(), static_cast<std::size_t>(config_.hidden_size));
    keep(a_.attended.data(), static_cast<std::size_t>(q_size()));
    return static_cast<int>(rows_.logit_rows().size());
  }

  ops::Device& device_;
  const ModelConfig config_;
  const LlamaWeights weights_;
  const ops::PagedKv kv_;
  const BatchLimits limits_;
  RopeTables rope_;
  BatchRows rows_;
  Activations a_;
  std::array<Slot, kMaxInFlight + 1> slots_;
  StepHandle launched_ = 0;
  StepHandle collected_ = 0;
};

}  // namespace

Result<std::unique_ptr<Model>> make_llama(ops::Device& device,
                                          const checkpoint::WeightImageView& image,
                                          const ModelConfig& config, const ops::PagedKv& kv,
                                          int num_blocks, int max_positions) {
  WeightReader reader(image);
  LlamaWeights weights = read_weights(reader, config);
  if (const auto& error = reader.error()) return *error;
  for (const float factor : weights.rope_factors) {
    if (!(factor > 0.0F)) {
      return make_error(Errc::kDataLoss, "weight image: a RoPE frequency factor is " +
                                             std::to_string(factor) + "; it must be positive");
    }
  }
  return std::unique_ptr<Model>(
      std::make_unique<Llama>(device, config, std::move(weights), kv,
                              BatchLimits{config.vocab_size, max_positions, num_blocks}));
}

}  // namespace thaw::model
