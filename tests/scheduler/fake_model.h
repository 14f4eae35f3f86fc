#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "engine/base/generate.h"
#include "engine/model/model.h"

namespace thaw::scheduler {

inline constexpr int kFakeVocab = 64;
inline constexpr TokenId kFakeEos = 63;

/// A model whose KV entry of a position is a hash of its token and of all entries before it, read
/// back through the block table, and whose logits are a hash of the entry. A wrong block, a missing
/// copy or stale bytes anywhere in the context change every token that follows.
class FakeModel final : public model::Model {
 public:
  FakeModel(std::size_t num_blocks, int max_positions);

  const model::ModelConfig& config() const override { return config_; }
  const model::KvView& kv() const override { return kv_; }
  int max_in_flight() const override { return 1; }
  bool can_draw(const SamplingParams&) const override { return false; }
  Result<model::StepHandle> launch(const model::Batch& batch) override;
  Result<model::StepOutput> collect(model::StepHandle handle) override;
  Result<void> copy_block(BlockId from, BlockId to) override;

  int largest_prefill() const { return largest_prefill_; }
  /// Rows of each sequence in the last batch.
  const std::vector<int>& last_rows() const { return last_rows_; }
  void make_logits_nan() { nan_ = true; }

 private:
  std::uint64_t& entry(const model::SequenceRows& rows, int position);
  Result<void> run(const model::SequenceRows& rows);

  model::ModelConfig config_;
  std::vector<std::byte> memory_;
  model::KvView kv_;
  std::vector<float> logits_;
  std::vector<int> last_rows_;
  std::vector<BlockId> written_;  ///< in the batch at hand
  int largest_prefill_ = 0;
  bool nan_ = false;
};

std::uint64_t mix(std::uint64_t hash, std::uint64_t value);
/// The logits that follow an entry.
void fake_logits(std::uint64_t entry, float* logits);

/// What the model generates for a choice, computed without blocks, batches or a scheduler.
/// `stopped`, if given, says whether it ended with a stop token (which is not among the tokens).
std::vector<TokenId> expected_tokens(const GenerateRequest& request, std::uint32_t choice_index,
                                     std::size_t max_tokens, bool* stopped = nullptr);

}  // namespace thaw::scheduler
