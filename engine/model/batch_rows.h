#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/base/result.h"
#include "engine/model/model.h"

namespace thaw::model {

struct BatchLimits {
  int vocab_size = 0;
  int max_positions = 0;
  int num_blocks = 0;  ///< in the KV pool
};

/// A batch laid out as kernels take it: the rows of all sequences, one after the other. Keeps its
/// memory between steps.
class BatchRows {
 public:
  /// Checks the batch and lays it out. Errors (kInvalidArgument) name the sequence and the value: a
  /// token outside the vocabulary, a position past the limit, a block table that is too short or
  /// names a block that is not there, logit rows out of range or order.
  Result<void> assign(const Batch& batch, const BatchLimits& limits);

  int num_rows() const { return static_cast<int>(token_ids_.size()); }
  std::span<const TokenId> token_ids() const { return token_ids_; }
  std::span<const std::int32_t> positions() const { return positions_; }
  std::span<const ops::AttentionSequence> sequences() const { return sequences_; }
  /// Rows that want logits, ascending.
  std::span<const int> logit_rows() const { return logit_rows_; }
  /// One past the largest position.
  int end_position() const { return end_position_; }

 private:
  std::vector<TokenId> token_ids_;
  std::vector<std::int32_t> positions_;
  std::vector<ops::AttentionSequence> sequences_;
  std::vector<int> logit_rows_;
  int end_position_ = 0;
};

}  // namespace thaw::model
