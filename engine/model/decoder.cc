#include "engine/model/decoder.h"

#include <array>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "engine/model/batch_rows.h"
#include "engine/model/decoder_weights.h"
#include "engine/model/float_buffer.h"
#include "engine/model/rope_frequencies.h"
#include "engine/model/rope_table.h"
#include "engine/model/weight_reader.h"
#include "engine/ops/elementwise.h"
#include "engine/ops/linear.h"

namespace thaw::model {
namespace {

/// launch() does the work. One more buffer of logits than steps in flight, because the newest
/// collected step's stays valid until the next collect().
constexpr int kMaxInFlight = 1;

KvView view_of(const ops::PagedKv& kv, int num_blocks) {
  constexpr std::array kDTypes = {"bf16", "f16", "f32"};
  return {kv.base, kv.block_bytes(), static_cast<std::size_t>(num_blocks),
          std::string(kDTypes[static_cast<std::size_t>(kv.dtype)]) + " [layers=" +
              std::to_string(kv.num_layers) + "][k,v][kv_heads=" + std::to_string(kv.num_kv_heads) +
              "][k: head_dim=" + std::to_string(kv.head_dim) +
              ", block=" + std::to_string(kBlockSize) + "; v: block, head_dim]"};
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

class Decoder final : public Model {
 public:
  Decoder(ops::Device& device, ModelConfig config, DecoderWeights weights, const ops::PagedKv& kv,
          const BatchLimits& limits)
      : device_(device),
        config_(std::move(config)),
        weights_(std::move(weights)),
        kv_(kv),
        view_(view_of(kv, limits.num_blocks)),
        limits_(limits),
        rope_(rope_frequencies(config_.rope, weights_.rope_factors), config_.rope.magnitude,
              config_.rope.half_split) {}

  const ModelConfig& config() const override { return config_; }
  const KvView& kv() const override { return view_; }
  int max_in_flight() const override { return kMaxInFlight; }
  bool can_draw(const SamplingParams&) const override { return false; }

  Result<StepHandle> launch(const Batch& batch) override {
    if (launched_ - collected_ == kMaxInFlight) {
      return make_error(Errc::kInvalidArgument,
                        "model: a step waits to be collected; no other may be launched");
    }
    for (const SequenceRows& sequence : batch.sequences) {
      if (sequence.draw || sequence.first_token)
        return make_error(Errc::kInvalidArgument, "model: the CPU draws no tokens; ask for logits");
    }
    if (auto assigned = rows_.assign(batch, limits_); !assigned) return std::move(assigned).error();
    reserve();
    Slot& slot = slots_[launched_ % slots_.size()];
    slot.num_rows = static_cast<int>(rows_.logit_rows().size());
    forward(slot.logits.reserve(static_cast<std::size_t>(slot.num_rows) * config_.vocab_size));
    return launched_++;
  }

  Result<StepOutput> collect(StepHandle handle) override {
    if (handle != collected_ || handle >= launched_) {
      return make_error(Errc::kInvalidArgument,
                        "model: step " + std::to_string(handle) + " is not the next to collect");
    }
    const Slot& slot = slots_[collected_++ % slots_.size()];
    const std::size_t size = static_cast<std::size_t>(slot.num_rows) * config_.vocab_size;
    return StepOutput{{slot.logits.data(), size}, slot.num_rows, config_.vocab_size};
  }

  Result<void> copy_block(BlockId from, BlockId to) override {
    const auto at = [this](BlockId block) {
      return view_.base + view_.block_bytes * static_cast<std::size_t>(block);
    };
    std::memcpy(at(to), at(from), view_.block_bytes);
    return {};
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
      project_qkv(w, config_.layers[layer], num_rows);
      ops::store_kv(device_, kv_, layer, rows_.sequences(), a_.k.data(), a_.v.data());
      if (layer + 1 == config_.num_layers && rows_.logit_rows().empty()) return;
      attend(layer);
      if (layer + 1 == config_.num_layers) num_rows = keep_logit_rows();
      const std::array o = {ops::LinearOutput{w.o, a_.branch.data()}};
      ops::linear(device_, a_.attended.data(), num_rows, o);
      add_bias(w.o_bias, num_rows, a_.branch.data());
      add_branch(num_rows);
      feed_forward(w, num_rows);
      add_branch(num_rows);
    }
    norm(weights_.output_norm, num_rows);
    const std::array head = {ops::LinearOutput{weights_.head, logits}};
    ops::linear_two_step(device_, a_.normed.data(), num_rows, head);
  }

  void project_qkv(const LayerWeights& w, const LayerConfig& layer, int num_rows) {
    norm(w.attention_norm, num_rows);
    const std::array qkv = {ops::LinearOutput{w.q, a_.q.data()},
                            ops::LinearOutput{w.k, a_.k.data()},
                            ops::LinearOutput{w.v, a_.v.data()}};
    ops::linear_two_step(device_, a_.normed.data(), num_rows, qkv);
    add_bias(w.q_bias, num_rows, a_.q.data());
    add_bias(w.k_bias, num_rows, a_.k.data());
    add_bias(w.v_bias, num_rows, a_.v.data());
    shape_heads(w.q_norm, layer, config_.num_heads, a_.q.data());
    shape_heads(w.k_norm, layer, config_.num_kv_heads, a_.k.data());
  }

  /// What happens to each head of q or k, [rows, heads, head_dim], before attention: norm and RoPE.
  void shape_heads(std::span<const float> norm_weight, const LayerConfig& layer, int num_heads,
                   float* x) {
    if (!norm_weight.empty()) {
      ops::rms_norm(device_, x, norm_weight.data(), config_.rms_norm_eps,
                    rows_.num_rows() * num_heads, config_.head_dim, x);
    }
    if (layer.rope)
      ops::rope(device_, rope_.view(), rows_.positions(), num_heads, config_.head_dim, x);
  }

  void attend(int layer) {
    ops::AttentionArgs args;
    args.kv = kv_;
    args.layer = layer;
    args.num_heads = config_.num_heads;
    args.window = config_.layers[layer].window;
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
    add_bias(w.gate_bias, num_rows, a_.gate.data());
    add_bias(w.up_bias, num_rows, a_.up.data());
    ops::swiglu(device_, a_.gate.data(), a_.up.data(),
                std::int64_t{num_rows} * config_.intermediate_size, a_.gate.data());
    const std::array down = {ops::LinearOutput{w.down, a_.branch.data()}};
    ops::linear_two_step(device_, a_.gate.data(), num_rows, down);
    add_bias(w.down_bias, num_rows, a_.branch.data());
  }

  /// Nothing where the model has no such bias.
  void add_bias(std::span<const float> bias, int num_rows, float* x) {
    if (!bias.empty())
      ops::add_bias(device_, x, bias.data(), num_rows, static_cast<int>(bias.size()));
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
  const DecoderWeights weights_;
  const ops::PagedKv kv_;
  const KvView view_;
  const BatchLimits limits_;
  RopeTables rope_;
  BatchRows rows_;
  Activations a_;
  std::array<Slot, kMaxInFlight + 1> slots_;
  StepHandle launched_ = 0;
  StepHandle collected_ = 0;
};

}  // namespace

Result<std::unique_ptr<Model>> make_decoder(ops::Device& device,
                                            const checkpoint::WeightImageView& image,
                                            const ModelConfig& config, const ops::PagedKv& kv,
                                            int num_blocks, int max_positions) {
  WeightReader reader(image);
  DecoderWeights weights = read_decoder_weights(reader, config);
  if (const auto& error = reader.error()) return *error;
  for (const double frequency : rope_frequencies(config.rope, weights.rope_factors)) {
    if (!(frequency > 0.0) || !std::isfinite(frequency)) {
      return make_error(Errc::kDataLoss, "weight image: a RoPE frequency is " +
                                             std::to_string(frequency) +
                                             "; it must be positive and finite");
    }
  }
  return std::unique_ptr<Model>(
      std::make_unique<Decoder>(device, config, std::move(weights), kv,
                                BatchLimits{config.vocab_size, max_positions, num_blocks}));
}

}  // namespace thaw::model
