#include "engine/model/cuda/forward.h"

#include <algorithm>
#include <cmath>
#include <span>
#include <thread>

#include "engine/cuda/check.h"
#include "engine/model/rope_frequencies.h"
#include "engine/model/rope_table.h"
#include "engine/ops/cuda/elementwise.h"
#include "engine/ops/cuda/rows.h"

namespace thaw::model {
namespace {

using ops::cuda::Bf16;
using ops::cuda::Epilogue;
using ops::cuda::Tiles;
using ops::cuda::tiles_elements;

/// Elements of every buffer, in one place: Forward makes them, device_bytes() adds them up.
struct Sizes {
  Sizes(const ModelConfig& config, const ForwardLimits& limits) {
    const int q_size = config.num_heads * config.head_dim;
    const int qkv_size = q_size + 2 * config.num_kv_heads * config.head_dim;
    const auto rows = static_cast<std::size_t>(limits.max_rows);
    const auto tail = static_cast<std::size_t>(limits.max_tail_rows);
    const auto hidden = static_cast<std::size_t>(config.hidden_size);
    ids = rows;
    x = rows * hidden;
    normed = tiles_elements(limits.max_rows, config.hidden_size);
    qkv = rows * static_cast<std::size_t>(qkv_size);
    attended = tiles_elements(limits.max_rows, q_size);
    gated = tiles_elements(limits.max_rows, config.intermediate_size);
    partials = ops::cuda::attention_workspace_elements(
        {config.num_heads, config.num_kv_heads, config.head_dim}, limits.max_partials);
    tail_x = tail * hidden;
    tail_attended = tiles_elements(limits.max_tail_rows, q_size);
    logits = tail * static_cast<std::size_t>(config.vocab_size);
    drawn = 2 * rows;
    draw_workspace =
        ops::cuda::draw_workspace_bytes(limits.max_tail_rows, config.vocab_size) / sizeof(double);
    rope = static_cast<std::size_t>(limits.max_positions) *
           static_cast<std::size_t>(config.rope.dim) / 2;
  }
  std::size_t bytes() const {
    return 4 * (ids + x + partials + tail_x + logits + drawn + 2 * rope) +
           2 * (normed + qkv + attended + gated + tail_attended) + 8 * draw_workspace;
  }
  std::size_t ids, x, normed, qkv, attended, gated, partials, tail_x, tail_attended, logits, drawn,
      draw_workspace, rope;
};

/// Tables for all positions, on as many threads as help: a context of 128K takes a third of a
/// second on one.
void fill_rope(const ModelConfig& config, const std::vector<double>& frequencies, int positions,
               std::span<float> cos, std::span<float> sin) {
  const std::size_t pairs = frequencies.size();
  const int threads = std::clamp<int>(static_cast<int>(std::thread::hardware_concurrency()), 1, 8);
  const int share = (positions + threads - 1) / threads;
  std::vector<std::jthread> running;
  for (int first = 0; first < positions; first += share) {
    running.emplace_back([&, first] {
      const int count = std::min(share, positions - first);
      const std::size_t at = static_cast<std::size_t>(first) * pairs;
      const std::size_t size = static_cast<std::size_t>(count) * pairs;
      fill_rope_rows(frequencies, config.rope.magnitude, first, cos.subspan(at, size),
                     sin.subspan(at, size));
    });
  }
}

}  // namespace

LayerWindows::LayerWindows(const ModelConfig& config, int max_positions) {
  for (const LayerConfig& layer : config.layers) {
    // One that covers every position is none.
    const int window = layer.window < max_positions ? layer.window : 0;
    const auto found = std::ranges::find(windows, window);
    of_layer.push_back(static_cast<int>(found - windows.begin()));
    if (found == windows.end()) windows.push_back(window);
  }
}

Forward::Forward(const ops::CudaDevice& device, const ModelConfig& config,
                 const CudaWeights& weights, const ops::cuda::DeviceKv& kv,
                 const ForwardLimits& limits, ops::cuda::LinearKernel kernel,
                 cuda::StreamView stream)
    : device_(device),
      config_(config),
      weights_(weights),
      kv_(kv),
      limits_(limits),
      kernel_(kernel),
      windows_(config, limits.max_positions) {
  const Sizes sizes(config, limits);
  ids_ = {sizes.ids, stream};
  x_ = {sizes.x, stream};
  normed_ = {sizes.normed, stream};
  qkv_ = {sizes.qkv, stream};
  attended_ = {sizes.attended, stream};
  gated_ = {sizes.gated, stream};
  partials_ = {sizes.partials, stream};
  tail_x_ = {sizes.tail_x, stream};
  tail_attended_ = {sizes.tail_attended, stream};
  logits_ = {sizes.logits, stream};
  drawn_ = {sizes.drawn, stream};
  draw_workspace_ = {sizes.draw_workspace, stream};
  cos_ = {sizes.rope, stream};
  sin_ = {sizes.rope, stream};
  cuda::check(
      cudaMemsetAsync(drawn_.data(), 0xff, sizes.drawn * sizeof(std::int32_t), stream.get()),
      "clear drawn tokens");

  std::vector<float> factors;
  if (weights.rope_factors != nullptr) {
    factors.resize(static_cast<std::size_t>(config.rope.dim) / 2);
    cuda::copy_to_host<float>({weights.rope_factors, factors.size()}, factors, stream);
    stream.synchronize();
  }
  const std::vector<double> frequencies = rope_frequencies(config.rope, factors);
  for (const double frequency : frequencies) {
    if (!(frequency > 0.0) || !std::isfinite(frequency)) {
      throw Exception(make_error(Errc::kDataLoss, "weight image: a RoPE frequency is " +
                                                      std::to_string(frequency) +
                                                      "; it must be positive and finite"));
    }
  }
  std::vector<float> cos(sizes.rope);
  std::vector<float> sin(sizes.rope);
  fill_rope(config, frequencies, limits.max_positions, cos, sin);
  cuda::copy_to_device<float>(cos, cos_, stream);
  cuda::copy_to_device<float>(sin, sin_, stream);
  stream.synchronize();
}

std::size_t Forward::device_bytes(const ModelConfig& config, const ForwardLimits& limits) {
  return Sizes(config, limits).bytes();
}

void Forward::enqueue(const ForwardInputs& inputs, const std::function<void(int, int)>& on_logits,
                      cuda::StreamView stream) {
  ops::cuda::ResolveIdsParams ids;
  ids.ids = inputs.ids;
  ids.num_rows = inputs.num_rows;
  ids.drawn = drawn_.data();
  ids.max_drawn = max_drawn();
  ids.out = ids_.data();
  ops::cuda::resolve_ids(device_, ids, stream);
  done(StepPart::kIds);

  ops::cuda::EmbeddingParams embedding;
  embedding.table = weights_.token_embedding;
  embedding.ids = ids_.data();
  embedding.num_rows = inputs.num_rows;
  embedding.out = x_.data();
  ops::cuda::embedding(device_, embedding, stream);
  done(StepPart::kEmbedding);

  const int last = config_.num_layers - 1;
  const Tiles attended{attended_.data(), q_size()};
  for (int layer = 0; layer <= last; ++layer) {
    project_qkv(layer, inputs, stream);
    if (layer == last && inputs.num_logit_rows == 0) return;
    attend(layer, inputs, stream);
    if (layer < last) finish_layer(layer, inputs.num_rows, x_.data(), attended, stream);
  }
  for (int first = 0; first < inputs.num_logit_rows; first += limits_.max_tail_rows) {
    const int count = std::min(limits_.max_tail_rows, inputs.num_logit_rows - first);
    tail(inputs, first, count, stream);
    if (on_logits) on_logits(first, count);
  }
}

void Forward::project_qkv(int layer, const ForwardInputs& inputs, cuda::StreamView stream) {
  const CudaLayerWeights& w = weights_.layers[static_cast<std::size_t>(layer)];
  const bool has_rope = config_.layers[static_cast<std::size_t>(layer)].rope;
  norm(w.attention_norm, inputs.num_rows, x_.data(), stream);
  linear(StepPart::kQkv, w.qkv, {normed_.data(), config_.hidden_size}, inputs.num_rows,
         Epilogue::kBf16, qkv_.data(), qkv_size(), w.qkv_bias, stream);
  ops::cuda::RopeAndStoreParams rope;
  rope.qkv = qkv_.data();
  rope.stride = qkv_size();
  rope.num_rows = inputs.num_rows;
  rope.shape = shape_of(layer);
  rope.positions = inputs.positions;
  rope.blocks = inputs.blocks;
  rope.cos = has_rope ? cos_.data() : nullptr;
  rope.sin = has_rope ? sin_.data() : nullptr;
  rope.half_split = config_.rope.half_split;
  rope.q_norm = w.q_norm;
  rope.k_norm = w.k_norm;
  rope.norm_eps = config_.rms_norm_eps;
  rope.kv = kv_;
  rope.layer = layer;
  ops::cuda::rope_and_store(device_, rope, stream);
  done(StepPart::kRope);
}

ops::cuda::AttentionShape Forward::shape_of(int layer) const {
  const int window = windows_.of_layer[static_cast<std::size_t>(layer)];
  return {config_.num_heads, config_.num_kv_heads, config_.head_dim,
          windows_.windows[static_cast<std::size_t>(window)]};
}

void Forward::attend(int layer, const ForwardInputs& inputs, cuda::StreamView stream) {
  const int window = windows_.of_layer[static_cast<std::size_t>(layer)];
  const ForwardPlan& plan = inputs.plans[static_cast<std::size_t>(window)];
  ops::cuda::AttentionParams attention;
  attention.kv = kv_;
  attention.layer = layer;
  attention.shape = shape_of(layer);
  attention.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(config_.head_dim)));
  attention.q = qkv_.data();
  attention.q_stride = qkv_size();
  attention.plan = plan.words;
  attention.workspace = partials_.data();
  attention.max_partials = limits_.max_partials;
  attention.out = {attended_.data(), q_size()};
  attention.has_tiles = plan.has_tiles;
  attention.has_items = plan.has_items;
  ops::cuda::attention(device_, attention, stream);
  done(StepPart::kAttention);
}

void Forward::finish_layer(int layer, int num_rows, float* x, Tiles attended,
                           cuda::StreamView stream) {
  const CudaLayerWeights& w = weights_.layers[static_cast<std::size_t>(layer)];
  const int hidden = config_.hidden_size;
  linear(StepPart::kOut, w.o, attended, num_rows, Epilogue::kAddF32, x, hidden, w.o_bias, stream);
  norm(w.ffn_norm, num_rows, x, stream);
  linear(StepPart::kGateUp, w.gate_up, {normed_.data(), hidden}, num_rows, Epilogue::kSwigluTiles,
         gated_.data(), 0, nullptr, stream);
  linear(StepPart::kDown, w.down, {gated_.data(), config_.intermediate_size}, num_rows,
         Epilogue::kAddF32, x, hidden, nullptr, stream);
}

void Forward::tail(const ForwardInputs& inputs, int first, int count, cuda::StreamView stream) {
  float* x = x_.data();
  Tiles attended{attended_.data(), q_size()};
  // Where every row goes on, they lie where they should.
  if (inputs.num_logit_rows != inputs.num_rows || count != inputs.num_rows) {
    ops::cuda::GatherRowsParams gather;
    gather.rows = inputs.logit_rows + first;
    gather.num_rows = count;
    gather.x = x;
    gather.cols = config_.hidden_size;
    gather.x_out = tail_x_.data();
    gather.tiles = attended;
    gather.tiles_out = {tail_attended_.data(), q_size()};
    ops::cuda::gather_rows(device_, gather, stream);
    done(StepPart::kGather);
    x = gather.x_out;
    attended = gather.tiles_out;
  }
  finish_layer(config_.num_layers - 1, count, x, attended, stream);
  norm(weights_.output_norm, count, x, stream);
  linear(StepPart::kHead, weights_.head, {normed_.data(), config_.hidden_size}, count,
         Epilogue::kF32, logits_.data(), config_.vocab_size, nullptr, stream);
  if (!inputs.has_draws) return;
  ops::cuda::DrawParams draw;
  draw.logits = logits_.data();
  draw.stride = config_.vocab_size;
  draw.num_rows = count;
  draw.vocabulary = config_.vocab_size;
  draw.rows = inputs.draws + first;
  draw.workspace = draw_workspace_.data();
  draw.out = drawn_.data() + first;
  ops::cuda::draw(device_, draw, stream);
  done(StepPart::kDraw);
}

void Forward::norm(const float* weight, int num_rows, const float* x, cuda::StreamView stream) {
  ops::cuda::RmsNormParams params;
  params.x = x;
  params.x_stride = config_.hidden_size;
  params.weight = weight;
  params.eps = config_.rms_norm_eps;
  params.num_rows = num_rows;
  params.out = {normed_.data(), config_.hidden_size};
  ops::cuda::rms_norm(device_, params, stream);
  done(StepPart::kNorm);
}

void Forward::linear(StepPart part, const ops::cuda::TiledWeight& weight, Tiles x, int num_rows,
                     Epilogue epilogue, void* out, std::int64_t out_stride, const float* bias,
                     cuda::StreamView stream) {
  ops::cuda::LinearParams params;
  params.weight = weight;
  params.x = x;
  params.num_rows = num_rows;
  params.epilogue = epilogue;
  params.out = out;
  params.out_stride = out_stride;
  params.bias = bias;
  params.kernel = kernel_;
  ops::cuda::linear(device_, params, stream);
  done(part);
}

}  // namespace thaw::model
