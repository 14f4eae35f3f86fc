#include "engine/model/cuda/step_inputs.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "engine/ops/cuda/attention_plan.h"
#include "engine/ops/cuda/rows.h"

namespace thaw::model {
namespace {

using ops::cuda::DrawRow;

constexpr std::size_t kDrawWords = sizeof(DrawRow) / sizeof(std::int32_t);
static_assert(kDrawWords == 4);

/// Words up to the next 16 bytes: kernels read several at once.
constexpr std::size_t padded(int words) {
  return static_cast<std::size_t>(words + 3) / 4 * 4;
}

/// Words that hold every plan within the limits: for each partial result an item with its table and
/// an entry, each aligned; for each row of decode its counters; and whole block tables for tiles.
std::size_t plan_words(const ForwardLimits& limits, int max_sequences) {
  constexpr std::size_t kWordsPerPartial = 8 + 3 + ops::cuda::kSplitBlocks + 4 + 3;
  constexpr std::size_t kWordsPerRow = 8 + 64;  // one counter for each KV head
  const std::size_t table = static_cast<std::size_t>(limits.max_positions) / kBlockSize + 1;
  // Rows that go on alone are sequences, too.
  const auto tables = static_cast<std::size_t>(std::max(max_sequences, kMostAloneRows));
  const std::size_t words = 64 + kWordsPerPartial * limits.max_partials +
                            kWordsPerRow * static_cast<std::size_t>(limits.max_rows) +
                            table * tables;
  return (words + 3) / 4 * 4;
}

std::size_t all_words(const ForwardLimits& limits, int max_sequences, int num_plans) {
  return StepLayout(limits.max_rows, limits.max_rows).plan + 2 * padded(kMostAloneRows) +
         plan_words(limits, max_sequences) * static_cast<std::size_t>(num_plans + 1);
}

}  // namespace

StepLayout::StepLayout(int num_rows, int num_logit_rows)
    : positions(ids + padded(num_rows)),
      blocks(positions + padded(num_rows)),
      logit_rows(blocks + padded(num_rows)),
      draws(logit_rows + padded(num_logit_rows)),
      tail_positions(draws + kDrawWords * static_cast<std::size_t>(num_logit_rows)),
      tail_blocks(tail_positions +
                  (goes_on_alone(num_rows, num_logit_rows) ? padded(num_logit_rows) : 0)),
      plan(2 * tail_blocks - tail_positions) {}

StepInputs::StepInputs(std::vector<ops::cuda::AttentionShape> shapes, int last,
                       const ForwardLimits& limits, int max_sequences, cuda::StreamView stream)
    : shapes_(std::move(shapes)),
      last_(last),
      max_partials_(limits.max_partials),
      max_plan_words_(plan_words(limits, max_sequences)) {
  const std::size_t words = all_words(limits, max_sequences, static_cast<int>(shapes_.size()));
  for (auto& slot : staging_)
    slot = cuda::PinnedBuffer<std::int32_t>(words);
  words_ = {words, stream};
}

std::size_t StepInputs::device_bytes(const ForwardLimits& limits, int max_sequences,
                                     int num_plans) {
  return all_words(limits, max_sequences, num_plans) * sizeof(std::int32_t);
}

ForwardInputs StepInputs::at(int num_rows, int num_logit_rows) const {
  const StepLayout layout(num_rows, num_logit_rows);
  ForwardInputs inputs;
  inputs.num_rows = num_rows;
  inputs.num_logit_rows = num_logit_rows;
  inputs.ids = words_.data() + layout.ids;
  inputs.positions = words_.data() + layout.positions;
  inputs.blocks = words_.data() + layout.blocks;
  inputs.logit_rows = words_.data() + layout.logit_rows;
  inputs.draws = reinterpret_cast<const DrawRow*>(words_.data() + layout.draws);
  for (std::size_t i = 0; i < shapes_.size(); ++i)
    inputs.plans.push_back({words_.data() + layout.plan + i * max_plan_words_});
  if (goes_on_alone(num_rows, num_logit_rows)) {
    inputs.tail.positions = words_.data() + layout.tail_positions;
    inputs.tail.blocks = words_.data() + layout.tail_blocks;
  }
  return inputs;
}

Result<ForwardInputs> StepInputs::send(const BatchRows& rows, std::span<const std::int32_t> ids,
                                       std::span<const DrawRow> draws, int num_rows,
                                       int num_logit_rows, int slot, cuda::StreamView stream) {
  const StepLayout layout(num_rows, num_logit_rows);
  const std::span<std::int32_t> words = staging_[static_cast<std::size_t>(slot)].span();
  const auto put = [&](std::size_t at, std::span<const std::int32_t> values, std::size_t count,
                       std::int32_t rest) {
    const auto end = std::ranges::copy(values, words.begin() + static_cast<std::ptrdiff_t>(at)).out;
    std::fill(end, words.begin() + static_cast<std::ptrdiff_t>(at + count), rest);
  };
  const auto count = static_cast<std::size_t>(num_rows);
  put(layout.ids, ids, count, ops::cuda::kNoToken);
  put(layout.positions, rows.positions(), count, 0);
  put(layout.logit_rows, rows.logit_rows(), static_cast<std::size_t>(num_logit_rows), 0);
  const auto draw_words =
      words.subspan(layout.draws, kDrawWords * static_cast<std::size_t>(num_logit_rows));
  std::ranges::fill(draw_words, 0);  // the rest is greedy
  std::memcpy(draw_words.data(), draws.data(), draws.size_bytes());
  std::int32_t* block = words.data() + layout.blocks;
  for (const ops::AttentionSequence& sequence : rows.sequences())
    for (int i = 0; i < sequence.num_rows; ++i)
      *block++ =
          sequence
              .block_table[static_cast<std::size_t>((sequence.first_position + i) / kBlockSize)];
  std::fill(block, words.data() + layout.blocks + count, -1);

  ForwardInputs inputs = at(num_rows, num_logit_rows);
  std::size_t sent = 0;  // words that are on their way
  // Writes plan `index`, and sends it with all that was laid out ahead of it.
  const auto plan = [&](std::size_t index, const ops::cuda::AttentionShape& shape,
                        std::span<const ops::AttentionSequence> sequences,
                        std::optional<ops::cuda::ItemWidth> width,
                        ForwardPlan& out) -> Result<ops::cuda::ItemWidth> {
    const std::size_t place = layout.plan + index * max_plan_words_;
    const auto used =
        ops::cuda::plan_attention(shape, sequences, max_partials_,
                                  words.subspan(place, max_plan_words_), width, rows.sequences());
    if (!used) return used.error();
    const std::size_t unsent = place + *used - sent;
    cuda::copy_to_device<std::int32_t>(words.subspan(sent, unsent),
                                       words_.span().subspan(sent, unsent), stream);
    sent = place + max_plan_words_;
    const ops::cuda::AttentionPlanHeader header = ops::cuda::header_of(words.subspan(place));
    out = {words_.data() + place, header.num_tiles > 0, header.num_items > 0};
    return header.width;
  };
  const bool alone = goes_on_alone(num_rows, num_logit_rows);
  if (alone) {
    lay_out_tail(rows);
    const auto tail_rows = static_cast<std::size_t>(num_logit_rows);
    for (std::size_t i = 0; i < tail_.size(); ++i)
      words[layout.tail_positions + i] = tail_[i].first_position;
    std::ranges::fill(words.subspan(layout.tail_blocks, tail_rows), -1);
  }
  for (std::size_t i = 0; i < shapes_.size(); ++i) {
    // The same of all: a graph has the kernels of one.
    const auto width = i == 0 ? std::nullopt : std::optional(inputs.width);
    const auto planned = plan(i, shapes_[i], rows.sequences(), width, inputs.plans[i]);
    if (!planned) return planned.error();
    inputs.width = *planned;
  }
  if (alone) {
    const auto planned = plan(shapes_.size(), shapes_[static_cast<std::size_t>(last_)], tail_,
                              std::nullopt, inputs.tail.plan);
    if (!planned) return planned.error();
    inputs.tail.width = *planned;
  }
  return inputs;
}

void StepInputs::lay_out_tail(const BatchRows& rows) {
  tail_.clear();
  auto sequence = rows.sequences().begin();
  for (const int row : rows.logit_rows()) {
    while (row >= sequence->first_row + sequence->num_rows)
      ++sequence;
    ops::AttentionSequence& one = tail_.emplace_back(*sequence);
    one.first_position += row - sequence->first_row;
    one.first_row = static_cast<int>(tail_.size()) - 1;
    one.num_rows = 1;
  }
}

}  // namespace thaw::model
