#include "tests/scheduler/ahead_model.h"

#include <algorithm>
#include <string>

namespace thaw::scheduler {
namespace {

Error wrong(const std::string& what) {
  return make_error(Errc::kInvalidArgument, "ahead model: " + what);
}

}  // namespace

Result<model::StepHandle> AheadModel::launch(const model::Batch& batch) {
  if (num_in_flight() == max_in_flight()) return wrong("two steps are in flight already");
  if (num_in_flight() > 0 && !steps_.back().waiting.empty())
    return wrong("the last step waits for its masks");
  const bool awaits_masks = std::ranges::any_of(batch.sequences, &model::SequenceRows::awaits_mask);
  std::vector<std::vector<TokenId>> tokens;
  model::Batch known;
  for (const model::SequenceRows& rows : batch.sequences) {
    tokens.emplace_back(rows.tokens.begin(), rows.tokens.end());
    if (rows.first_token) {
      const auto token = drawn_by(*rows.first_token);
      if (!token) return token.error();
      tokens.back().front() = std::max(*token, 0);
    }
    if (rows.draw && (rows.logit_rows.empty() ||
                      rows.logit_rows.back() + 1 != static_cast<int>(rows.tokens.size()))) {
      return wrong("a draw from a row that is not the last");
    }
    known.sequences.push_back(
        {tokens.back(), rows.first_position, rows.block_table, rows.logit_rows});
  }
  const auto handle = model_.launch(known);
  if (!handle) return handle.error();
  const auto output = model_.collect(*handle);
  if (!output) return output.error();

  Step step;
  int row = 0;
  for (const model::SequenceRows& rows : batch.sequences) {
    const int end = row + static_cast<int>(rows.logit_rows.size());
    for (; row < end; ++row) {
      const auto logits = output->row(row);
      if (rows.draw && row + 1 == end && awaits_masks) {
        step.waiting.emplace_back(*rows.draw, std::vector<float>(logits.begin(), logits.end()));
      } else if (rows.draw && row + 1 == end) {
        step.drawn.push_back(draw(logits, *rows.draw));
      } else {
        step.logits.insert(step.logits.end(), logits.begin(), logits.end());
      }
    }
  }
  if (awaits_masks && row > max_masked_rows_)
    return wrong(std::to_string(row) + " logit rows beside a draw that awaits its mask");
  num_ahead_ += num_in_flight() > 0 ? 1 : 0;
  steps_.push_back(std::move(step));
  if (steps_.size() > 3) steps_.pop_front();
  return launched_++;
}

Result<void> AheadModel::give_masks(model::StepHandle handle,
                                    std::span<const std::span<const std::uint32_t>> masks) {
  if (num_in_flight() != 1 || handle != collected_)
    return wrong("masks for a step that is not the only one in flight");
  Step& step = steps_.back();
  if (masks.size() != step.waiting.size())
    return wrong(std::to_string(masks.size()) + " masks for " +
                 std::to_string(step.waiting.size()) + " draws");
  for (std::size_t i = 0; i < masks.size(); ++i) {
    num_masked_ += masks[i].empty() ? 0 : 1;
    step.drawn.push_back(draw(step.waiting[i].second, step.waiting[i].first, masks[i]));
  }
  step.waiting.clear();
  return {};
}

Result<model::StepOutput> AheadModel::collect(model::StepHandle handle) {
  if (handle != collected_ || handle >= launched_)
    return wrong("step " + std::to_string(handle) + " is not the next to collect");
  const Step& step = steps_[steps_.size() - (launched_ - handle)];
  if (!step.waiting.empty()) return wrong("the step waits for its masks");
  ++collected_;
  const int vocab_size = config().vocab_size;
  return model::StepOutput{step.logits, static_cast<int>(step.logits.size()) / vocab_size,
                           vocab_size, step.drawn};
}

Result<TokenId> AheadModel::drawn_by(const model::DrawnToken& token) const {
  if (token.step >= launched_ || launched_ - token.step > 2)
    return wrong("step " + std::to_string(token.step) + " is not one of the last two");
  const Step& step = steps_[steps_.size() - (launched_ - token.step)];
  if (token.row < 0 || static_cast<std::size_t>(token.row) >= step.drawn.size())
    return wrong("row " + std::to_string(token.row) + " is not drawn");
  return step.drawn[static_cast<std::size_t>(token.row)];
}

TokenId AheadModel::draw(std::span<const float> logits, const model::DeviceDraw& draw,
                         std::span<const std::uint32_t> mask) {
  SamplingParams params;
  params.temperature = draw.temperature;
  params.min_p = draw.min_p;
  params.seed = draw.seed;
  unknown_.resize(draw.position);
  sampling::SamplingContext context{unknown_, 0, draw.choice_index, {}};
  context.mask = mask;
  const auto sampled = sampler_.sample(logits, params, context);
  return sampled ? sampled->token : -1;
}

}  // namespace thaw::scheduler
