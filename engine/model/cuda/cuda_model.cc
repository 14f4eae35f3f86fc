#include "engine/model/cuda/cuda_model.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/error.h"
#include "engine/base/log.h"
#include "engine/base/random.h"
#include "engine/cuda/check.h"
#include "engine/cuda/graph.h"
#include "engine/cuda/wait.h"
#include "engine/model/batch_rows.h"
#include "engine/model/cuda/cuda_weights.h"
#include "engine/model/cuda/step_inputs.h"
#include "engine/model/cuda_image.h"
#include "engine/ops/cuda/all_gather.h"
#include "engine/ops/cuda/rows.h"

namespace thaw::model {
namespace {

using Clock = std::chrono::steady_clock;
using ops::cuda::LinearKernel;

constexpr int kMaxInFlight = 2;
/// The newest collected step's output stays valid until the next collect().
constexpr int kOutputs = kMaxInFlight + 1;
/// Of a rank; a step has some hundred exchanges, at most some thousand.
constexpr StepHandle kRefreshSteps = StepHandle{1} << 16;
constexpr int kMaxTailRows = 256;
constexpr int kMaxPinnedRows = 64;  ///< of logits, a step; more go through pageable memory
constexpr std::size_t kMostPartials = 16384;
constexpr int kSplitRows = 256;  ///< chunks of fewer rows are planned as decode is
/// Rows that decode graphs are captured for, up to max_sequences; more rows cost more there.
constexpr int kGraphRows[] = {1, 2, 4, 8, 16, 24, 32, 48, 64, 128, 192, 256};

int rounded_up(int value, int unit) {
  return (value + unit - 1) / unit * unit;
}

int max_positions_of(const ModelConfig& config, const CudaModelOptions& options) {
  return options.max_positions == 0 ? config.max_positions : options.max_positions;
}

ForwardLimits limits_of(const ModelConfig& config, const CudaModelOptions& options) {
  ForwardLimits limits;
  limits.max_positions = max_positions_of(config, options);
  limits.max_rows = rounded_up(std::max(options.max_rows, options.max_sequences), 64);
  limits.max_tail_rows = std::min(rounded_up(options.max_sequences, 64), kMaxTailRows);
  const std::size_t splits = static_cast<std::size_t>(limits.max_positions) / 256 + 1;
  limits.max_partials =
      options.max_partials != 0
          ? options.max_partials
          : std::min(kMostPartials, splits * static_cast<std::size_t>(
                                                 std::max(options.max_sequences, kSplitRows)));
  return limits;
}

/// Of every attention plan that a step needs.
std::vector<ops::cuda::AttentionShape> shapes_of(const ModelConfig& config,
                                                 const LayerWindows& windows, TensorParallel tp) {
  const ModelConfig own = rank_heads(config, tp.size);
  std::vector<ops::cuda::AttentionShape> shapes;
  shapes.reserve(windows.windows.size());
  for (const int window : windows.windows)
    shapes.push_back({own.num_heads, own.num_kv_heads, own.head_dim, window});
  return shapes;
}

/// What a step leaves for collect().
struct Output {
  cuda::PinnedBuffer<float> logits;  // [pinned rows, vocab]
  std::vector<float> many_logits;  // where there are more rows than that
  cuda::PinnedBuffer<std::int32_t> drawn;  // [max_sequences], by drawn row
  cuda::Event done;
  int num_rows = 0;  ///< of logits, not drawn
  std::vector<int> drawn_rows;  ///< logit rows that are drawn, ascending
};

/// A step whose draws wait for their masks.
struct WaitingDraws {
  ForwardInputs inputs;
};

/// Words of the masks of one step: for each logit row which one it has, then the masks.
std::size_t masks_words(const ModelConfig& config, const CudaModelOptions& options) {
  const auto rows = static_cast<std::size_t>(limits_of(config, options).max_tail_rows);
  return rows * (1 + static_cast<std::size_t>(ops::cuda::draw_mask_words(config.vocab_size)));
}

bool serves_masks(const CudaModelOptions& options) {
  return options.tp.size == 1;  // the other ranks draw too, and are not told
}

class CudaDecoder final : public CudaModel {
 public:
  CudaDecoder(const ops::CudaDevice& device, ModelConfig config, CudaWeights weights,
              const ops::cuda::DeviceKv& kv, int num_blocks, const CudaModelOptions& options,
              LinearKernel kernel)
      : device_(device),
        config_(std::move(config)),
        weights_(std::move(weights)),
        options_(options),
        limits_(limits_of(config_, options)),
        batch_limits_{config_.vocab_size, limits_.max_positions, num_blocks},
        view_(view_of(config_, kv, num_blocks, options.tp)),
        forward_(device, config_, weights_, kv, limits_, kernel, options.tp, options.exchange,
                 stream_),
        inputs_(shapes_of(config_, forward_.windows(), options.tp),
                forward_.windows().of_layer.back(), limits_, options.max_sequences, stream_) {
    const int pinned = std::min(rounded_up(options.max_sequences, 8), kMaxPinnedRows);
    for (Output& output : outputs_) {
      output.logits = cuda::PinnedBuffer<float>(static_cast<std::size_t>(pinned) *
                                                static_cast<std::size_t>(config_.vocab_size));
      output.drawn =
          cuda::PinnedBuffer<std::int32_t>(static_cast<std::size_t>(options.max_sequences));
      output.drawn_rows.reserve(static_cast<std::size_t>(options.max_sequences));
    }
    if (serves_masks(options)) {
      const std::size_t words = masks_words(config_, options);
      mask_staging_ = cuda::PinnedBuffer<std::int32_t>(words);
      masks_ = {words, stream_};
    }
    if (options.use_graphs) capture();
    stream_.synchronize();
  }

  ~CudaDecoder() override {
    const cuda::DeviceScope scope(stream_.device());
    cuda::check_noexcept(cudaStreamSynchronize(stream_.view().get()), "steps in flight");
  }
  CudaDecoder(const CudaDecoder&) = delete;
  CudaDecoder& operator=(const CudaDecoder&) = delete;

  const ModelConfig& config() const override { return config_; }
  const KvView& kv() const override { return view_; }
  int max_in_flight() const override { return kMaxInFlight; }
  bool can_draw(const SamplingParams& params) const override {
    return DeviceDraw::of(params).has_value();
  }
  int max_masked_rows() const override {
    return serves_masks(options_) ? limits_.max_tail_rows : 0;
  }
  cuda::StreamView stream() const override { return stream_; }
  std::size_t device_bytes() const override { return cuda_model_bytes(config_, options_); }
  void set_probe(std::function<void(StepPart)> probe) override {
    has_probe_ = static_cast<bool>(probe);
    forward_.set_probe(std::move(probe));
  }

  Result<StepHandle> launch(const Batch& batch) override {
    if (broken_) return *broken_;
    if (launched_ - collected_ == kMaxInFlight) {
      return make_error(Errc::kInvalidArgument, "model: " + std::to_string(kMaxInFlight) +
                                                    " steps wait to be collected; no more may be "
                                                    "launched");
    }
    if (waiting_) {
      return make_error(Errc::kInvalidArgument, "model: step " + std::to_string(launched_ - 1) +
                                                    " waits for its masks; no more may be "
                                                    "launched");
    }
    if (auto assigned = rows_.assign(batch, batch_limits_); !assigned) return assigned.error();
    if (auto sized = check_size(batch); !sized) return sized.error();
    Output& output = outputs_[launched_ % kOutputs];
    if (auto drawn = read_draws(batch, output); !drawn) return drawn.error();
    try {
      const cuda::DeviceScope scope(stream_.device());
      if (auto enqueued = enqueue(output); !enqueued) return enqueued.error();
    } catch (const Exception& failure) {
      return fail(failure.error());
    }
    return launched_++;
  }

  Result<void> give_masks(StepHandle handle,
                          std::span<const std::span<const std::uint32_t>> masks) override {
    if (broken_) return *broken_;
    if (!waiting_ || handle != collected_ || handle + 1 != launched_) {
      return make_error(Errc::kInvalidArgument,
                        "model: masks for step " + std::to_string(handle) +
                            "; the only step in flight, one that awaits them, is right");
    }
    const WaitingDraws& waiting = *waiting_;
    Output& output = outputs_[handle % kOutputs];
    if (auto staged = stage_masks(output, masks); !staged) return staged.error();
    try {
      const cuda::DeviceScope scope(stream_.device());
      const auto rows = static_cast<std::size_t>(limits_.max_tail_rows);
      cuda::copy_to_device<std::int32_t>(mask_staging_.span().subspan(0, num_mask_words_),
                                         masks_.span().subspan(0, num_mask_words_), stream_);
      forward_.draw(waiting.inputs, masks_.data(),
                    reinterpret_cast<const std::uint32_t*>(masks_.data() + rows), stream_);
      copy_drawn(output);
      output.done.record(stream_);
    } catch (const Exception& failure) {
      return fail(failure.error());
    }
    waiting_.reset();
    return {};
  }

  Result<StepOutput> collect(StepHandle handle) override {
    if (broken_) return *broken_;
    if (waiting_ && handle + 1 == launched_) {
      return make_error(Errc::kInvalidArgument,
                        "model: step " + std::to_string(handle) + " waits for its masks");
    }
    if (handle != collected_ || handle >= launched_) {
      return make_error(Errc::kInvalidArgument,
                        "model: step " + std::to_string(handle) + " is not the next to collect");
    }
    const Output& output = outputs_[handle % kOutputs];
    try {
      const cuda::DeviceScope scope(stream_.device());
      if (!cuda::wait_until(output.done, Clock::now() + options_.step_timeout)) {
        return fail(make_error(Errc::kDeadlineExceeded,
                               "model: step " + std::to_string(handle) + " is not done after " +
                                   std::to_string(options_.step_timeout.count()) + " ms"));
      }
      if (options_.exchange != nullptr && options_.exchange->stopped() != 0)
        return fail(options_.exchange->stop_error());
    } catch (const Exception& failure) {
      return fail(failure.error());
    }
    ++collected_;
    const std::size_t size =
        static_cast<std::size_t>(output.num_rows) * static_cast<std::size_t>(config_.vocab_size);
    const float* logits =
        size > output.logits.size() ? output.many_logits.data() : output.logits.data();
    StepOutput step{{logits, size}, output.num_rows, config_.vocab_size};
    step.drawn = {output.drawn.data(), output.drawn_rows.size()};
    return step;
  }

  Result<void> copy_block(BlockId from, BlockId to) override {
    if (broken_) return *broken_;
    for (const BlockId block : {from, to}) {
      if (block < 0 || block >= batch_limits_.num_blocks) {
        return make_error(Errc::kInvalidArgument,
                          "model: block " + std::to_string(block) + "; 0 to " +
                              std::to_string(batch_limits_.num_blocks - 1) + " is right");
      }
    }
    try {
      const cuda::DeviceScope scope(stream_.device());
      const auto at = [this](BlockId block) {
        return view_.base + view_.block_bytes * static_cast<std::size_t>(block);
      };
      cuda::check(cudaMemcpyAsync(at(to), at(from), view_.block_bytes, cudaMemcpyDeviceToDevice,
                                  stream_.view().get()),
                  "copy a KV block");
    } catch (const Exception& failure) {
      return fail(failure.error());
    }
    return {};
  }

 private:
  struct DecodeGraph {
    int rows;
    /// By width of attention's items, then without and with draws; captured when it is first
    /// needed, but for what a plain batch needs.
    std::array<std::array<std::optional<cuda::Graph>, 2>, 2> of;
  };

  static KvView view_of(const ModelConfig& config, const ops::cuda::DeviceKv& kv, int num_blocks,
                        TensorParallel tp) {
    return {reinterpret_cast<std::byte*>(kv.base), kv.block_elements() * sizeof(ops::cuda::Bf16),
            static_cast<std::size_t>(num_blocks), cuda_kv_layout(rank_heads(config, tp.size))};
  }

  Error fail(Error error) {
    broken_ = std::move(error);
    return *broken_;
  }

  /// One graph for each padded number of rows; the batch's own data is read from device memory.
  void capture() {
    for (const int rows : kGraphRows) {
      if (rows > rounded_up(options_.max_sequences, 8) || rows > limits_.max_tail_rows) break;
      graph_of(graphs_.emplace_back(DecodeGraph{rows, {}}), ops::cuda::ItemWidth::kNarrow, true);
    }
  }

  cuda::Graph& graph_of(DecodeGraph& graph, ops::cuda::ItemWidth width, bool has_draws) {
    auto& found = graph.of[static_cast<std::size_t>(width)][has_draws ? 1 : 0];
    if (!found) {
      ForwardInputs inputs = inputs_.at(graph.rows, graph.rows);
      inputs.width = width;
      inputs.has_draws = has_draws;
      found = cuda::Graph::capture(
          stream_, [&](cuda::StreamView stream) { forward_.enqueue(inputs, {}, stream); });
    }
    return *found;
  }

  Result<void> stage_masks(const Output& output,
                           std::span<const std::span<const std::uint32_t>> masks) {
    if (masks.size() != output.drawn_rows.size())
      return make_error(Errc::kInvalidArgument,
                        "model: " + std::to_string(masks.size()) + " masks for " +
                            std::to_string(output.drawn_rows.size()) + " drawn rows");
    const auto words = static_cast<std::size_t>(ops::cuda::draw_mask_words(config_.vocab_size));
    const auto rows = static_cast<std::size_t>(limits_.max_tail_rows);
    const std::span<std::int32_t> staged = mask_staging_.span();
    std::ranges::fill(staged.first(rows), -1);
    std::int32_t count = 0;
    num_mask_words_ = rows;
    for (std::size_t i = 0; i < masks.size(); ++i) {
      if (masks[i].empty()) continue;
      if (masks[i].size() != words)
        return make_error(Errc::kInvalidArgument, "model: a mask of " +
                                                      std::to_string(masks[i].size()) + " words; " +
                                                      std::to_string(words) + " are right");
      staged[static_cast<std::size_t>(output.drawn_rows[i])] = count++;
      std::memcpy(staged.data() + num_mask_words_, masks[i].data(), masks[i].size_bytes());
      num_mask_words_ += words;
    }
    return {};
  }

  Result<void> check_size(const Batch& batch) const {
    if (rows_.num_rows() > limits_.max_rows ||
        batch.sequences.size() > static_cast<std::size_t>(options_.max_sequences)) {
      return make_error(Errc::kInvalidArgument,
                        "batch: " + std::to_string(rows_.num_rows()) + " rows of " +
                            std::to_string(batch.sequences.size()) + " sequences; up to " +
                            std::to_string(limits_.max_rows) + " and " +
                            std::to_string(options_.max_sequences) + " are right");
    }
    return {};
  }

  /// Which logit rows are drawn, and which ids are what earlier steps draw.
  Result<void> read_draws(const Batch& batch, Output& output) {
    ids_.assign(rows_.token_ids().begin(), rows_.token_ids().end());
    std::vector<int>& drawn = drawn_rows_;
    drawn.clear();
    draws_.clear();
    int logit_row = 0;
    awaits_masks_ = false;
    for (std::size_t i = 0; i < batch.sequences.size(); ++i) {
      const SequenceRows& sequence = batch.sequences[i];
      awaits_masks_ = awaits_masks_ || sequence.awaits_mask;
      const auto wrong = [i](const std::string& what) {
        return make_error(Errc::kInvalidArgument,
                          "batch: sequence " + std::to_string(i) + ": " + what);
      };
      logit_row += static_cast<int>(sequence.logit_rows.size());
      draws_.resize(static_cast<std::size_t>(logit_row));
      if (sequence.draw) {
        if (sequence.logit_rows.empty()) return wrong("it is drawn, but asks for no logits");
        if (!(sequence.draw->temperature >= 0.0F))
          return wrong("a draw of temperature " + std::to_string(sequence.draw->temperature) +
                       "; 0 and more is right");
        drawn.push_back(logit_row - 1);
        draws_.back() = {token_uniform(sequence.draw->seed, sequence.draw->choice_index,
                                       sequence.draw->position),
                         sequence.draw->temperature, sequence.draw->min_p};
      }
      if (!sequence.first_token) continue;
      const StepHandle step = sequence.first_token->step;
      const int row = sequence.first_token->row;
      if (step >= launched_ || launched_ - step > kMaxInFlight)
        return wrong("its first token is drawn by step " + std::to_string(step) +
                     "; one of the last two is right");
      const std::vector<int>& rows = outputs_[step % kOutputs].drawn_rows;
      if (row < 0 || static_cast<std::size_t>(row) >= rows.size())
        return wrong("its first token is drawn row " + std::to_string(row) + " of a step with " +
                     std::to_string(rows.size()));
      ids_[static_cast<std::size_t>(rows_.sequences()[i].first_row)] =
          ops::cuda::drawn_reference(static_cast<int>(launched_ - step) - 1,
                                     rows[static_cast<std::size_t>(row)], forward_.max_drawn());
    }
    if (awaits_masks_ && logit_row > max_masked_rows()) {
      return make_error(Errc::kInvalidArgument,
                        "batch: " + std::to_string(logit_row) +
                            " logit rows beside a draw that awaits a mask; up to " +
                            std::to_string(max_masked_rows()) + " are right");
    }
    std::swap(output.drawn_rows, drawn);
    output.num_rows = logit_row - static_cast<int>(output.drawn_rows.size());
    return {};
  }

  Result<void> enqueue(Output& output) {
    const int rows = rows_.num_rows();
    const auto logit_rows = static_cast<int>(rows_.logit_rows().size());
    const bool is_decode =
        rows == logit_rows && static_cast<std::size_t>(rows) == rows_.sequences().size();
    const auto graph = std::ranges::find_if(
        graphs_, [&](const DecodeGraph& candidate) { return candidate.rows >= rows; });
    const bool use_graph = is_decode && graph != graphs_.end() && !has_probe_;
    const int padded = use_graph ? graph->rows : rows;
    auto inputs = inputs_.send(rows_, ids_, draws_, padded, use_graph ? padded : logit_rows,
                               static_cast<int>(launched_ % kMaxInFlight), stream_);
    if (!inputs) return inputs.error();
    inputs->has_draws = !output.drawn_rows.empty() && !awaits_masks_;
    if (options_.exchange != nullptr && launched_ % kRefreshSteps == kRefreshSteps - 1)
      ops::cuda::refresh_exchange(device_, *options_.exchange, stream_);

    next_logits_ = 0;
    is_pageable_ =
        static_cast<std::size_t>(output.num_rows) * static_cast<std::size_t>(config_.vocab_size) >
        output.logits.size();
    if (is_pageable_)
      output.many_logits.resize(static_cast<std::size_t>(output.num_rows) *
                                static_cast<std::size_t>(config_.vocab_size));
    const bool has_tiles = std::ranges::any_of(inputs->plans, &ForwardPlan::has_tiles);
    if (use_graph && !has_tiles) {
      graph_of(*graph, inputs->width, !awaits_masks_).launch(stream_);
      copy_logits(output, 0, logit_rows);
    } else {
      forward_.enqueue(
          *inputs,
          [&](int first, int count) {
            copy_logits(output, first, std::min(count, logit_rows - first));
          },
          stream_);
    }
    if (awaits_masks_) {
      // The padded rows of a graph are nobody's.
      inputs->num_logit_rows = logit_rows;
      waiting_ = WaitingDraws{*std::move(inputs)};
      return {};
    }
    copy_drawn(output);
    output.done.record(stream_);
    return {};
  }

  /// Brings the logits of a group's rows that are not drawn to the host, neighbours together.
  void copy_logits(Output& output, int first, int count) {
    const auto width = static_cast<std::size_t>(config_.vocab_size);
    float* const to = is_pageable_ ? output.many_logits.data() : output.logits.data();
    const auto is_drawn = [&](int row) {
      return std::ranges::binary_search(output.drawn_rows, row);
    };
    for (int row = first; row < first + count;) {
      int end = row;
      while (end < first + count && !is_drawn(end))
        ++end;
      if (end == row) {
        ++row;
        continue;
      }
      const std::size_t size = static_cast<std::size_t>(end - row) * width;
      cuda::copy_to_host<float>(
          {forward_.logits() + static_cast<std::size_t>(row - first) * width, size},
          {to + next_logits_, size}, stream_);
      next_logits_ += size;
      row = end;
    }
  }

  void copy_drawn(Output& output) {
    const std::vector<int>& rows = output.drawn_rows;
    for (std::size_t at = 0; at < rows.size();) {
      std::size_t end = at + 1;
      while (end < rows.size() && rows[end] == rows[end - 1] + 1)
        ++end;
      cuda::copy_to_host<std::int32_t>({forward_.drawn() + rows[at], end - at},
                                       {output.drawn.data() + at, end - at}, stream_);
      at = end;
    }
  }

  const ops::CudaDevice& device_;
  const ModelConfig config_;
  const CudaWeights weights_;
  const CudaModelOptions options_;
  const ForwardLimits limits_;
  const BatchLimits batch_limits_;
  const KvView view_;
  cuda::Stream stream_;
  Forward forward_;
  StepInputs inputs_;
  std::array<Output, kOutputs> outputs_;
  std::vector<DecodeGraph> graphs_;
  BatchRows rows_;
  std::vector<std::int32_t> ids_;
  std::vector<ops::cuda::DrawRow> draws_;  ///< by logit row
  std::vector<int> drawn_rows_;
  cuda::PinnedBuffer<std::int32_t> mask_staging_;
  cuda::DeviceBuffer<std::int32_t> masks_;  // [tail rows], then [tail rows][mask words]
  std::size_t num_mask_words_ = 0;  ///< of mask_staging_ that are used
  std::optional<WaitingDraws> waiting_;  ///< of the newest step
  bool awaits_masks_ = false;  ///< the step that is launched
  std::size_t next_logits_ = 0;  ///< of the step that is launched: floats copied so far
  bool is_pageable_ = false;
  bool has_probe_ = false;
  StepHandle launched_ = 0;
  StepHandle collected_ = 0;
  std::optional<Error> broken_;
};

Error wrong(const std::string& what) {
  return make_error(Errc::kInvalidArgument, what);
}

Result<void> check_options(const ModelConfig& config, const CudaModelOptions& options) {
  const int max_positions = max_positions_of(config, options);
  if (max_positions < 1 || max_positions > config.max_positions)
    return wrong("max_positions is " + std::to_string(options.max_positions) +
                 "; the model was made for 1 to " + std::to_string(config.max_positions));
  if (options.max_rows < 1 || options.max_rows > 1 << 20)
    return wrong("max_rows is " + std::to_string(options.max_rows) + "; 1 to 1048576 is right");
  if (options.max_sequences < 1 || options.max_sequences > 4096)
    return wrong("max_sequences is " + std::to_string(options.max_sequences) +
                 "; 1 to 4096 is right");
  return {};
}

/// The kernel that computes every linear, after the two were compared on this device.
Result<LinearKernel> choose_kernel(const ops::CudaDevice& device, const ModelConfig& config,
                                   bool self_test) {
  if (!self_test) return LinearKernel::kAuto;
  // A chain over K does not know how many outputs there are beside it.
  constexpr int kRows = 256;
  const ops::cuda::LinearShape shapes[] = {{kRows, config.hidden_size},
                                           {kRows, config.num_heads * config.head_dim},
                                           {kRows, config.intermediate_size}};
  const cuda::Stream stream;
  const auto found = ops::cuda::linear_self_test(device, shapes, stream);
  if (!found) return found.error();
  if (found->empty()) return LinearKernel::kAuto;
  logger("model")->warn("event=linear_kernels_disagree device=\"{}\" cols={} rows={} outputs={}",
                        device.info().name, found->front().shape.cols, found->front().num_rows,
                        found->front().outputs);
  return LinearKernel::kStream;
}

}  // namespace

std::size_t cuda_model_bytes(const ModelConfig& config, const CudaModelOptions& options) {
  const ForwardLimits limits = limits_of(config, options);
  const std::size_t masks =
      serves_masks(options) ? masks_words(config, options) * sizeof(std::int32_t) : 0;
  return masks + Forward::device_bytes(config, limits, options.tp) +
         StepInputs::device_bytes(
             limits, options.max_sequences,
             static_cast<int>(LayerWindows(config, limits.max_positions).windows.size()));
}

std::string cuda_kv_layout(const ModelConfig& config) {
  return "bf16 [layers=" + std::to_string(config.num_layers) +
         "][k,v][kv_heads=" + std::to_string(config.num_kv_heads) +
         "][block=" + std::to_string(kBlockSize) +
         " / 8][head_dim=" + std::to_string(config.head_dim) + " / 8][8][8]";
}

std::size_t cuda_exchange_bytes(const ModelConfig& config, const CudaModelOptions& options) {
  return Forward::exchange_bytes(config, limits_of(config, options), options.tp);
}

Result<std::unique_ptr<CudaModel>> make_cuda_model(const ops::CudaDevice& device,
                                                   const checkpoint::WeightImageView& image,
                                                   cuda::DeviceSpan<const std::byte> weights,
                                                   cuda::DeviceSpan<std::byte> kv,
                                                   const CudaModelOptions& options) try {
  auto config = ModelConfig::from_json(image.document());
  if (!config) return std::move(config).error();
  if (auto supported = check_cuda_model(*config, {}); !supported) return supported.error();
  if (auto checked = check_options(*config, options); !checked) return checked.error();
  auto shard = plan_shard(image, *config, options.tp);
  if (!shard) return std::move(shard).error();
  auto read = read_cuda_weights(*shard, weights, *config, options.tp);
  if (!read) return std::move(read).error();
  const ModelConfig own = rank_heads(*config, options.tp.size);
  const std::size_t block_bytes = kv_block_bytes(own, ops::KvDType::kBF16);
  if (kv.size() < block_bytes) {
    return wrong("KV memory of " + std::to_string(kv.size()) + " bytes holds no block of " +
                 std::to_string(block_bytes) + " bytes");
  }
  const auto num_blocks = static_cast<int>(
      std::min<std::size_t>(kv.size() / block_bytes, std::numeric_limits<BlockId>::max()));
  const cuda::DeviceScope scope(device.info().ordinal);
  const auto kernel = choose_kernel(device, *config, options.self_test);
  if (!kernel) return kernel.error();
  const ops::cuda::DeviceKv layout{reinterpret_cast<ops::cuda::Bf16*>(kv.data()), own.num_layers,
                                   own.num_kv_heads, own.head_dim};
  return std::unique_ptr<CudaModel>(std::make_unique<CudaDecoder>(
      device, *std::move(config), *std::move(read), layout, num_blocks, options, *kernel));
} catch (const Exception& failure) {
  return failure.error();
}

}  // namespace thaw::model
