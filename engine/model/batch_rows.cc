#include "engine/model/batch_rows.h"

#include <algorithm>
#include <string>

namespace thaw::model {
namespace {

Error bad_sequence(std::size_t index, const std::string& what) {
  return make_error(Errc::kInvalidArgument,
                    "batch: sequence " + std::to_string(index) + ": " + what);
}

Result<void> check(std::size_t index, const SequenceRows& sequence, const BatchLimits& limits) {
  if (sequence.tokens.empty()) return bad_sequence(index, "it has no tokens");
  const auto num_rows = static_cast<std::int64_t>(sequence.tokens.size());
  if (sequence.first_position < 0 || sequence.first_position + num_rows > limits.max_positions) {
    return bad_sequence(index, "positions " + std::to_string(sequence.first_position) + " to " +
                                   std::to_string(sequence.first_position + num_rows - 1) +
                                   "; 0 to " + std::to_string(limits.max_positions - 1) +
                                   " is right");
  }
  for (const TokenId token : sequence.tokens.subspan(sequence.first_token ? 1 : 0)) {
    if (token < 0 || token >= limits.vocab_size) {
      return bad_sequence(index, "token " + std::to_string(token) + "; 0 to " +
                                     std::to_string(limits.vocab_size - 1) + " is right");
    }
  }
  const std::int64_t blocks = (sequence.first_position + num_rows + kBlockSize - 1) / kBlockSize;
  if (static_cast<std::int64_t>(sequence.block_table.size()) < blocks) {
    return bad_sequence(index, "a block table of " + std::to_string(sequence.block_table.size()) +
                                   " blocks; its positions need " + std::to_string(blocks));
  }
  for (const BlockId block : sequence.block_table.first(static_cast<std::size_t>(blocks))) {
    if (block < 0 || block >= limits.num_blocks) {
      return bad_sequence(index, "block " + std::to_string(block) + "; 0 to " +
                                     std::to_string(limits.num_blocks - 1) + " is right");
    }
  }
  int previous = -1;
  for (const int row : sequence.logit_rows) {
    if (row <= previous || row >= num_rows) {
      return bad_sequence(index, "logit row " + std::to_string(row) + "; ascending rows below " +
                                     std::to_string(num_rows) + " are right");
    }
    previous = row;
  }
  return {};
}

}  // namespace

Result<void> BatchRows::assign(const Batch& batch, const BatchLimits& limits) {
  if (batch.sequences.empty())
    return make_error(Errc::kInvalidArgument, "batch: it has no sequences");
  for (std::size_t i = 0; i < batch.sequences.size(); ++i)
    if (auto checked = check(i, batch.sequences[i], limits); !checked) return checked;

  token_ids_.clear();
  positions_.clear();
  sequences_.clear();
  logit_rows_.clear();
  end_position_ = 0;
  for (const SequenceRows& sequence : batch.sequences) {
    const int first_row = num_rows();
    const auto count = static_cast<int>(sequence.tokens.size());
    token_ids_.insert(token_ids_.end(), sequence.tokens.begin(), sequence.tokens.end());
    for (int i = 0; i < count; ++i)
      positions_.push_back(sequence.first_position + i);
    for (const int row : sequence.logit_rows)
      logit_rows_.push_back(first_row + row);
    sequences_.push_back({sequence.block_table, first_row, count, sequence.first_position});
    end_position_ = std::max(end_position_, sequence.first_position + count);
  }
  return {};
}

}  // namespace thaw::model
