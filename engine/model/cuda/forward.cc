#include "engine/model/cuda/forward.h"

#include <algorithm>
#include <cmath>
#include <span>
#include <string>
#include <thread>

#include "engine/cuda/check.h"
#include "engine/model/rope_frequencies.h"
#include "engine/model/rope_table.h"
#include "engine/ops/cuda/all_gather.h"
#include "engine/ops/cuda/elementwise.h"
#include "engine/ops/cuda/rows.h"

namespace thaw::model {
namespace {

using ops::cuda::Bf16;
using ops::cuda::Epilogue;
using ops::cuda::Tiles;
using ops::cuda::tiles_elements;

constexpr std::size_t kAlignment = 1024;

/// What every buffer holds, in one place: Forward makes them, device_bytes() adds them up.
struct Sizes {
  Sizes(const ModelConfig& config, const ForwardLimits& limits, TensorParallel tp) {
    const ShardBounds bounds(config, tp.size);
    const auto own = [&](const std::vector<int>& of) {
      return of[static_cast<std::size_t>(tp.rank) + 1] - of[static_cast<std::size_t>(tp.rank)];
    };
    const int q_size = config.num_heads * config.head_dim;
    const int kv_heads = own(bounds.kv_heads);
    const auto rows = static_cast<std::size_t>(limits.max_rows);
    const auto tail = static_cast<std::size_t>(limits.max_tail_rows);
    const auto hidden = static_cast<std::size_t>(config.hidden_size);
    ids = rows;
    normed = tiles_elements(limits.max_rows, config.hidden_size);
    qkv = rows * static_cast<std::size_t>(own(bounds.attended) + 2 * kv_heads * config.head_dim);
    partials = ops::cuda::attention_workspace_elements(
        {own(bounds.heads), kv_heads, config.head_dim}, limits.max_partials);
    tail_normed = tiles_elements(kMostAloneRows, config.hidden_size);
    bad_values = rows * static_cast<std::size_t>(kv_heads);
    drawn = 2 * rows;
    draw_workspace =
        ops::cuda::draw_workspace_bytes(limits.max_tail_rows, config.vocab_size) / sizeof(double);
    rope = static_cast<std::size_t>(limits.max_positions) *
           static_cast<std::size_t>(config.rope.dim) / 2;
    if (tp.size > 1) {
      attended_part = tiles_elements(limits.max_rows, own(bounds.attended));
      gated_part = tiles_elements(limits.max_rows, own(bounds.intermediate));
      tail_attended_part = tiles_elements(limits.max_tail_rows, own(bounds.attended));
    }
    // The same on every rank: they are found by their places.
    x_at = take(rows * hidden * sizeof(float));
    attended_at = take(tiles_elements(limits.max_rows, q_size) * sizeof(Bf16));
    gated_at = take(tiles_elements(limits.max_rows, config.intermediate_size) * sizeof(Bf16));
    tail_x_at = take(tail * hidden * sizeof(float));
    tail_attended_at = take(tiles_elements(limits.max_tail_rows, q_size) * sizeof(Bf16));
    logits_at = take(tail * static_cast<std::size_t>(config.vocab_size) * sizeof(float));
  }
  std::size_t parts() const { return attended_part + gated_part + tail_attended_part; }
  /// Without what is gathered.
  std::size_t bytes() const {
    return 4 * (ids + partials + drawn + 2 * rope) + 2 * (normed + tail_normed + qkv + parts()) +
           8 * draw_workspace + bad_values;
  }
  std::size_t ids, normed, tail_normed, qkv, partials, bad_values, drawn, draw_workspace,
      rope;  // elements
  std::size_t attended_part = 0, gated_part = 0, tail_attended_part = 0;
  std::size_t gathered = 0;  // bytes, and what begins where in them
  std::size_t x_at, attended_at, gated_at, tail_x_at, tail_attended_at, logits_at;

 private:
  std::size_t take(std::size_t bytes) {
    const std::size_t at = gathered;
    gathered += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return at;
  }
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
  // One that covers every position is none.
  const auto window_of = [&](const LayerConfig& layer) {
    return layer.window < max_positions ? layer.window : 0;
  };
  for (const LayerConfig& layer : config.layers)
    if (std::ranges::find(windows, window_of(layer)) == windows.end())
      windows.push_back(window_of(layer));
  // All keys first: what rows share of them settles the width of every plan's items.
  if (const auto all = std::ranges::find(windows, 0); all != windows.end())
    std::iter_swap(windows.begin(), all);
  for (const LayerConfig& layer : config.layers)
    of_layer.push_back(
        static_cast<int>(std::ranges::find(windows, window_of(layer)) - windows.begin()));
}

Forward::Forward(const ops::CudaDevice& device, const ModelConfig& config,
                 const CudaWeights& weights, const ops::cuda::DeviceKv& kv,
                 const ForwardLimits& limits, ops::cuda::LinearKernel kernel, TensorParallel tp,
                 const ops::cuda::Exchange* exchange, cuda::StreamView stream)
    : device_(device),
      config_(config),
      weights_(weights),
      kv_(kv),
      limits_(limits),
      kernel_(kernel),
      windows_(config, limits.max_positions),
      tp_(tp),
      bounds_(config, tp.size),
      exchange_(exchange) {
  const Sizes sizes(config, limits, tp);
  if (tp.size > 1 && (exchange == nullptr || exchange->size() != tp.size ||
                      exchange->user().size() < sizes.gathered)) {
    throw Exception(
        make_error(Errc::kInvalidArgument, "model: " + std::to_string(tp.size) +
                                               " ranks need an exchange between them of at least " +
                                               std::to_string(sizes.gathered) + " bytes"));
  }
  ids_ = {sizes.ids, stream};
  normed_ = {sizes.normed, stream};
  tail_normed_ = {sizes.tail_normed, stream};
  qkv_ = {sizes.qkv, stream};
  partials_ = {sizes.partials, stream};
  if (tp.size == 1) gathered_ = {sizes.gathered, stream};
  std::byte* const gathered = tp.size == 1 ? gathered_.data() : exchange->user().data();
  x_ = reinterpret_cast<float*>(gathered + sizes.x_at);
  attended_ = reinterpret_cast<Bf16*>(gathered + sizes.attended_at);
  gated_ = reinterpret_cast<Bf16*>(gathered + sizes.gated_at);
  tail_x_ = reinterpret_cast<float*>(gathered + sizes.tail_x_at);
  tail_attended_ = reinterpret_cast<Bf16*>(gathered + sizes.tail_attended_at);
  logits_ = reinterpret_cast<float*>(gathered + sizes.logits_at);
  for (int rank = 0; tp.size > 1 && rank < tp.size; ++rank) {
    const ops::cuda::ExchangeView& view = exchange->view();
    // Regions are alike: what has a place in one has the same in all.
    if (rank != tp.rank)
      copies_.push_back(
          static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(view.regions[rank]) -
                                    reinterpret_cast<std::uintptr_t>(view.regions[tp.rank])));
  }
  if (tp.size > 1) parts_ = {sizes.parts(), stream};
  attended_part_ = {tp.size == 1 ? attended_ : parts_.data(), q_size()};
  gated_part_ = {tp.size == 1 ? gated_ : attended_part_.data + sizes.attended_part,
                 own(bounds_.intermediate)};
  tail_attended_part_ = {tp.size == 1 ? tail_attended_ : gated_part_.data + sizes.gated_part,
                         q_size()};
  bad_values_ = {sizes.bad_values, stream};
  drawn_ = {sizes.drawn, stream};
  draw_workspace_ = {sizes.draw_workspace, stream};
  cos_ = {sizes.rope, stream};
  sin_ = {sizes.rope, stream};
  cuda::check(
      cudaMemsetAsync(drawn_.data(), 0xff, sizes.drawn * sizeof(std::int32_t), stream.get()),
      "clear drawn tokens");
  cuda::check(cudaMemsetAsync(bad_values_.data(), 0, sizes.bad_values, stream.get()),
              "clear flags of bad values");

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

std::size_t Forward::device_bytes(const ModelConfig& config, const ForwardLimits& limits,
                                  TensorParallel tp) {
  const Sizes sizes(config, limits, tp);
  return sizes.bytes() + (tp.size == 1 ? sizes.gathered : 0);
}

std::size_t Forward::exchange_bytes(const ModelConfig& config, const ForwardLimits& limits,
                                    TensorParallel tp) {
  return tp.size == 1 ? 0 : Sizes(config, limits, tp).gathered;
}

void Forward::enqueue(const ForwardInputs& inputs, const std::function<void(int, int)>& on_logits,
                      cuda::StreamView stream) {
  num_exchanges_ = 0;
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
  embedding.out = x_;
  ops::cuda::embedding(device_, embedding, stream);
  done(StepPart::kEmbedding);

  const int last = config_.num_layers - 1;
  const Tiles attended{attended_, config_.num_heads * config_.head_dim};
  const bool has_tail = inputs.num_logit_rows > 0;
  const bool stops = !has_tail || goes_on_alone(inputs.num_rows, inputs.num_logit_rows);
  for (int layer = 0; layer <= last; ++layer) {
    const float* const weight = weights_.layers[static_cast<std::size_t>(layer)].attention_norm;
    norm(weight, inputs.num_rows, x_, layer == 0 ? Columns::kWhole : Columns::kOwn, stream);
    const ProjectedRows rows{
        {normed_.data(), config_.hidden_size}, inputs.num_rows, inputs.positions, inputs.blocks};
    if (layer == last && stops) {
      project(layer, rows, Heads::kKeysAndValues, stream);
      break;
    }
    project(layer, rows, Heads::kAll, stream);
    const int window = windows_.of_layer[static_cast<std::size_t>(layer)];
    attend(layer, inputs.plans[static_cast<std::size_t>(window)], inputs.width, attended_part_,
           stream);
    if (layer < last) finish_layer(layer, inputs.num_rows, x_, attended_part_, attended, stream);
  }
  for (int first = 0; first < inputs.num_logit_rows; first += limits_.max_tail_rows) {
    const int count = std::min(limits_.max_tail_rows, inputs.num_logit_rows - first);
    tail(inputs, first, count, stream);
    if (on_logits) on_logits(first, count);
  }
  // A step that ends with an exchange has ended on every rank, as far as blocks are concerned: they
  // are written before it. So whoever waits for one rank's step may read all ranks' blocks.
  if (!has_tail) gather_rows_of(x_, 0, config_.hidden_size, bounds_.hidden, stream);
  if (tp_.size > 1) ops::cuda::end_round(device_, exchange_->view(), num_exchanges_, stream);
}

void Forward::project(int layer, const ProjectedRows& rows, Heads heads, cuda::StreamView stream) {
  const CudaLayerWeights& w = weights_.layers[static_cast<std::size_t>(layer)];
  const bool has_rope = config_.layers[static_cast<std::size_t>(layer)].rope;
  // Outputs that are left out, the first ones.
  const int skipped = heads == Heads::kAll ? 0 : q_size();
  ops::cuda::TiledWeight weight = w.qkv;
  weight.data += ops::cuda::weight_index(skipped, 0, weight.cols);
  weight.rows -= skipped;
  const float* const bias = w.qkv_bias == nullptr ? nullptr : w.qkv_bias + skipped;
  ops::cuda::RopeAndStoreParams rope;
  rope.qkv = qkv_.data() + skipped;
  rope.stride = qkv_size();
  rope.num_rows = rows.num_rows;
  rope.shape = shape_of(layer);
  if (heads == Heads::kKeysAndValues) rope.shape.num_heads = 0;
  rope.positions = rows.positions;
  rope.blocks = rows.blocks;
  rope.cos = has_rope ? cos_.data() : nullptr;
  rope.sin = has_rope ? sin_.data() : nullptr;
  rope.half_split = config_.rope.half_split;
  rope.q_norm = w.q_norm;
  rope.k_norm = w.k_norm;
  rope.norm_eps = config_.rms_norm_eps;
  rope.kv = kv_;
  rope.layer = layer;
  rope.bad_values = bad_values_.data();
  const bool at_once =
      w.q_norm == nullptr && w.k_norm == nullptr && ops::cuda::stores_heads(kernel_, rows.num_rows);
  linear(StepPart::kQkv, weight, rows.x, rows.num_rows, Epilogue::kBf16, rope.qkv, rope.stride,
         bias, stream, at_once ? &rope : nullptr);
  if (at_once)
    ops::cuda::mark_bad_keys(device_, rope, stream);
  else
    ops::cuda::rope_and_store(device_, rope, stream);
  done(StepPart::kRope);
}

ops::cuda::AttentionShape Forward::shape_of(int layer) const {
  const int window = windows_.of_layer[static_cast<std::size_t>(layer)];
  return {own(bounds_.heads), own(bounds_.kv_heads), config_.head_dim,
          windows_.windows[static_cast<std::size_t>(window)]};
}

void Forward::attend(int layer, const ForwardPlan& plan, ops::cuda::ItemWidth width, Tiles out,
                     cuda::StreamView stream) {
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
  attention.width = width;
  attention.out = out;
  attention.has_tiles = plan.has_tiles;
  attention.has_items = plan.has_items;
  ops::cuda::attention(device_, attention, stream);
  done(StepPart::kAttention);
}

void Forward::finish_layer(int layer, int num_rows, float* x, Tiles attended_part, Tiles attended,
                           cuda::StreamView stream) {
  const CudaLayerWeights& w = weights_.layers[static_cast<std::size_t>(layer)];
  const int hidden = config_.hidden_size;
  float* const own_x = x + first_of(bounds_.hidden);
  gather_tiles_of(attended_part, attended, num_rows, bounds_.attended, stream);
  linear(StepPart::kOut, w.o, attended, num_rows, Epilogue::kAddF32, own_x, hidden, w.o_bias,
         stream);
  norm(w.ffn_norm, num_rows, x, Columns::kOwn, stream);
  const Tiles normed{normed_.data(), hidden};
  const Tiles gated{gated_, config_.intermediate_size};
  // Where the part belongs at once. Columns of tiles follow one another by chunks.
  const Tiles own_gated{
      gated.data + static_cast<std::size_t>(first_of(bounds_.intermediate)) * ops::cuda::kTokenTile,
      own(bounds_.intermediate)};
  const bool in_place = pushes(num_rows) || sends_gated(num_rows);
  linear(StepPart::kGateUp, w.gate_up, normed, num_rows, Epilogue::kSwigluTiles,
         in_place ? own_gated.data : gated_part_.data, in_place ? gated.cols : 0, nullptr, stream);
  if (pushes(num_rows)) {
    meet_peers(stream);
  } else if (sends_gated(num_rows)) {
    auto gather = ops::cuda::gather_of_tiles(*exchange_, ++num_exchanges_, own_gated, gated,
                                             num_rows, bounds_.intermediate);
    gather.source = nullptr;
    gather.sent = true;
    ops::cuda::all_gather(device_, gather, stream);
    done(StepPart::kExchange);
  } else {
    gather_tiles_of(gated_part_, gated, num_rows, bounds_.intermediate, stream);
  }
  linear(StepPart::kDown, w.down, gated, num_rows, Epilogue::kAddF32, own_x, hidden, nullptr,
         stream);
}

void Forward::tail(const ForwardInputs& inputs, int first, int count, cuda::StreamView stream) {
  float* x = x_;
  const int q_size_of_all = config_.num_heads * config_.head_dim;
  Tiles attended_part = attended_part_;
  Tiles attended{attended_, q_size_of_all};
  const int last = config_.num_layers - 1;
  const bool alone = goes_on_alone(inputs.num_rows, inputs.num_logit_rows);
  // Where every row goes on, they lie where they should.
  if (inputs.num_logit_rows != inputs.num_rows || count != inputs.num_rows) {
    const Tiles tail_normed{tail_normed_.data(), config_.hidden_size};
    ops::cuda::GatherRowsParams gather;
    gather.rows = inputs.logit_rows + first;
    gather.num_rows = count;
    gather.x = x;
    gather.cols = config_.hidden_size;
    gather.x_out = tail_x_;
    gather.tiles = alone ? Tiles{normed_.data(), config_.hidden_size} : attended_part;
    gather.tiles_out = alone ? tail_normed : tail_attended_part_;
    ops::cuda::gather_rows(device_, gather, stream);
    done(StepPart::kGather);
    x = tail_x_;
    attended_part = tail_attended_part_;
    attended = {tail_attended_, q_size_of_all};
    if (alone) {
      project(last, {tail_normed, count, inputs.tail.positions, inputs.tail.blocks}, Heads::kAll,
              stream);
      attend(last, inputs.tail.plan, inputs.tail.width, attended_part, stream);
    }
  }
  finish_layer(last, count, x, attended_part, attended, stream);
  norm(weights_.output_norm, count, x, Columns::kOwn, stream);
  linear(StepPart::kHead, weights_.head, {normed_.data(), config_.hidden_size}, count,
         Epilogue::kF32, logits_ + first_of(bounds_.vocabulary), config_.vocab_size, nullptr,
         stream);
  gather_rows_of(logits_, count, config_.vocab_size, bounds_.vocabulary, stream);
  if (!inputs.has_draws) return;
  ops::cuda::draw(device_, draw_params(inputs, first, count), stream);
  done(StepPart::kDraw);
}

ops::cuda::DrawParams Forward::draw_params(const ForwardInputs& inputs, int first, int count) {
  ops::cuda::DrawParams draw;
  draw.logits = logits_;
  draw.stride = config_.vocab_size;
  draw.num_rows = count;
  draw.vocabulary = config_.vocab_size;
  draw.rows = inputs.draws + first;
  draw.workspace = draw_workspace_.data();
  draw.out = drawn_.data() + first;
  return draw;
}

void Forward::draw(const ForwardInputs& inputs, const std::int32_t* mask_of_row,
                   const std::uint32_t* masks, cuda::StreamView stream) {
  ops::cuda::DrawParams draw = draw_params(inputs, 0, inputs.num_logit_rows);
  draw.mask_of_row = mask_of_row;
  draw.masks = masks;
  ops::cuda::draw(device_, draw, stream);
  done(StepPart::kDraw);
}

void Forward::norm(const float* weight, int num_rows, float* x, Columns columns,
                   cuda::StreamView stream) {
  ops::cuda::RmsNormParams params;
  params.x = x;
  params.x_stride = config_.hidden_size;
  params.weight = weight;
  params.eps = config_.rms_norm_eps;
  params.num_rows = num_rows;
  params.out = {normed_.data(), config_.hidden_size};
  if (columns == Columns::kOwn && pushes(num_rows)) {
    meet_peers(stream);
  } else if (columns == Columns::kOwn && tp_.size > 1) {
    if (ops::cuda::gather_norm_serves(tp_.size, num_rows, bounds_.hidden)) {
      ops::cuda::GatherNormParams gather;
      gather.exchange = exchange_->view();
      gather.ordinal = ++num_exchanges_;
      gather.norm = params;
      gather.sent = sends_rows(num_rows);
      std::ranges::copy(bounds_.hidden, gather.bounds);
      ops::cuda::gather_norm(device_, gather, stream);
      done(StepPart::kNorm);
      return;
    }
    gather_rows_of(x, num_rows, config_.hidden_size, bounds_.hidden, stream);
  }
  ops::cuda::rms_norm(device_, params, stream);
  done(StepPart::kNorm);
}

bool Forward::pushes(int num_rows) const {
  return tp_.size > 1 && ops::cuda::stores_copies(kernel_, num_rows);
}

bool Forward::sends_rows(int num_rows) const {
  return tp_.size > 1 && !pushes(num_rows) &&
         ops::cuda::gather_norm_serves(tp_.size, num_rows, bounds_.hidden);
}

bool Forward::sends_gated(int num_rows) const {
  return tp_.size > 1 && !pushes(num_rows) &&
         ops::cuda::packets_serve(num_rows, bounds_.intermediate);
}

void Forward::meet_peers(cuda::StreamView stream) {
  ops::cuda::GatherParams nothing;
  nothing.exchange = exchange_->view();
  nothing.ordinal = ++num_exchanges_;
  ops::cuda::all_gather(device_, nothing, stream);
  done(StepPart::kExchange);
}

void Forward::gather_rows_of(float* x, int num_rows, int cols, const std::vector<int>& bounds,
                             cuda::StreamView stream) {
  if (tp_.size == 1) return;
  ops::cuda::all_gather(
      device_, ops::cuda::gather_of_rows(*exchange_, ++num_exchanges_, x, num_rows, cols, bounds),
      stream);
  done(StepPart::kExchange);
}

void Forward::gather_tiles_of(Tiles part, Tiles whole, int num_rows, const std::vector<int>& bounds,
                              cuda::StreamView stream) {
  if (tp_.size == 1) return;
  ops::cuda::all_gather(
      device_,
      ops::cuda::gather_of_tiles(*exchange_, ++num_exchanges_, part, whole, num_rows, bounds),
      stream);
  done(StepPart::kExchange);
}

void Forward::linear(StepPart part, const ops::cuda::TiledWeight& weight, Tiles x, int num_rows,
                     Epilogue epilogue, void* out, std::int64_t out_stride, const float* bias,
                     cuda::StreamView stream, const ops::cuda::RopeAndStoreParams* heads) {
  ops::cuda::LinearParams params;
  params.heads = heads;
  params.weight = weight;
  params.x = x;
  params.num_rows = num_rows;
  params.epilogue = epilogue;
  params.out = out;
  params.out_stride = out_stride;
  params.bias = bias;
  params.kernel = kernel_;
  params.behind_exchange = tp_.size > 1;
  const bool rows = part == StepPart::kOut || part == StepPart::kDown;
  if ((rows || part == StepPart::kGateUp) && pushes(num_rows)) params.copies = copies_;
  if (rows ? sends_rows(num_rows) : part == StepPart::kGateUp && sends_gated(num_rows)) {
    params.exchange = exchange_->view();
    params.ordinal = num_exchanges_ + 1;  // of the one that comes next
  }
  ops::cuda::linear(device_, params, stream);
  done(part);
}

}  // namespace thaw::model
