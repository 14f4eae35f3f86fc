#pragma once

#include <cstdint>
#include <deque>
#include <utility>
#include <vector>

#include "engine/model/model.h"
#include "engine/sampling/sampler.h"

namespace thaw::scheduler {

/// Another model's steps as a GPU would give them: two in flight, results only at collect(), tokens
/// drawn and fed on without the caller's knowing them. A step runs when it is launched: what a
/// stream does with steps in order cannot be told from that.
class AheadModel final : public model::Model {
 public:
  explicit AheadModel(model::Model& model) : model_(model) {}

  const model::ModelConfig& config() const override { return model_.config(); }
  const model::KvView& kv() const override { return model_.kv(); }
  int max_in_flight() const override { return 2; }
  bool can_draw(const SamplingParams& params) const override {
    return model::DeviceDraw::of(params).has_value();
  }
  int max_masked_rows() const override { return max_masked_rows_; }
  /// 0: constrained rows are sampled on the host.
  void set_max_masked_rows(int rows) { max_masked_rows_ = rows; }
  Result<model::StepHandle> launch(const model::Batch& batch) override;
  Result<void> give_masks(model::StepHandle handle,
                          std::span<const std::span<const std::uint32_t>> masks) override;
  Result<model::StepOutput> collect(model::StepHandle handle) override;
  Result<void> copy_block(BlockId from, BlockId to) override { return model_.copy_block(from, to); }

  /// Steps launched while another one was in flight.
  std::uint64_t num_ahead() const { return num_ahead_; }
  /// Draws that a mask restricted.
  std::uint64_t num_masked() const { return num_masked_; }
  int num_in_flight() const { return static_cast<int>(launched_ - collected_); }

 private:
  struct Step {
    std::vector<float> logits;  ///< of the rows that are not drawn
    std::vector<TokenId> drawn;
    std::vector<std::pair<model::DeviceDraw, std::vector<float>>> waiting;  ///< draws without masks
  };

  /// `handle` is one of the two launched last.
  Result<TokenId> drawn_by(const model::DrawnToken& token) const;
  TokenId draw(std::span<const float> logits, const model::DeviceDraw& draw,
               std::span<const std::uint32_t> mask = {});

  model::Model& model_;
  std::deque<Step> steps_;  ///< the last two launched, and the one collected last
  model::StepHandle launched_ = 0;
  model::StepHandle collected_ = 0;
  std::uint64_t num_ahead_ = 0;
  std::uint64_t num_masked_ = 0;
  int max_masked_rows_ = 16;
  sampling::Sampler sampler_;
  std::vector<TokenId> unknown_;  ///< stands for the tokens of a sequence: only their number counts
};

}  // namespace thaw::scheduler
