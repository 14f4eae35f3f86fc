#include "tests/scheduler/fake_model.h"

#include <algorithm>
#include <limits>

#include "engine/sampling/sampler.h"

namespace thaw::scheduler {

std::uint64_t mix(std::uint64_t hash, std::uint64_t value) {
  // The finalizer of SplitMix64.
  std::uint64_t z = (hash ^ value) + 0x9E3779B97F4A7C15ULL + (hash << 6);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
  return z ^ (z >> 31);
}

void fake_logits(std::uint64_t entry, float* logits) {
  for (int i = 0; i < kFakeVocab; ++i) {
    const std::uint64_t bits = mix(entry, 1000 + static_cast<std::uint64_t>(i));
    logits[i] = static_cast<float>(bits >> 40) * 0x1.0p-22F - 2.0F;
  }
}

FakeModel::FakeModel(std::size_t num_blocks, int max_positions) {
  config_.family = "fake";
  config_.vocab_size = kFakeVocab;
  config_.max_positions = max_positions;
  config_.eos_token_ids = {kFakeEos};
  kv_.block_bytes = kBlockSize * sizeof(std::uint64_t);
  kv_.num_blocks = num_blocks;
  memory_.assign(kv_.block_bytes * num_blocks, std::byte{0xEE});
  kv_.base = memory_.data();
}

std::uint64_t& FakeModel::entry(const model::SequenceRows& rows, int position) {
  const BlockId block = rows.block_table[static_cast<std::size_t>(position / kBlockSize)];
  auto* entries = reinterpret_cast<std::uint64_t*>(kv_.base + kv_.block_bytes *
                                                                  static_cast<std::size_t>(block));
  return entries[position % kBlockSize];
}

Result<void> FakeModel::run(const model::SequenceRows& rows) {
  const auto fail = [](const char* what) { return make_error(Errc::kInternal, what); };
  const int num_rows = static_cast<int>(rows.tokens.size());
  const int end = rows.first_position + num_rows;
  if (num_rows == 0 || rows.first_position < 0) return fail("no rows");
  if (end > config_.max_positions) return fail("rows past the context");
  if (rows.block_table.size() * kBlockSize < static_cast<std::size_t>(end))
    return fail("the block table does not cover the rows");
  for (int i = rows.first_position / kBlockSize; i <= (end - 1) / kBlockSize; ++i) {
    const BlockId block = rows.block_table[static_cast<std::size_t>(i)];
    if (std::find(written_.begin(), written_.end(), block) != written_.end())
      return fail("two sequences write one block");
    written_.push_back(block);
  }
  std::uint64_t context = 0;
  for (int position = 0; position < rows.first_position; ++position)
    context = mix(context, entry(rows, position));
  std::size_t next_logits = 0;
  for (int row = 0; row < num_rows; ++row) {
    const int position = rows.first_position + row;
    const std::uint64_t own =
        mix(mix(context, static_cast<std::uint64_t>(rows.tokens[static_cast<std::size_t>(row)])),
            static_cast<std::uint64_t>(position));
    entry(rows, position) = own;
    context = mix(context, own);
    if (next_logits == rows.logit_rows.size() || rows.logit_rows[next_logits] != row) continue;
    ++next_logits;
    logits_.resize(logits_.size() + kFakeVocab);
    fake_logits(own, logits_.data() + logits_.size() - kFakeVocab);
  }
  if (next_logits != rows.logit_rows.size()) return fail("logit rows that are not there");
  last_rows_.push_back(num_rows);
  if (num_rows > 1) largest_prefill_ = std::max(largest_prefill_, num_rows);
  return {};
}

Result<model::StepHandle> FakeModel::launch(const model::Batch& batch) {
  logits_.clear();
  last_rows_.clear();
  written_.clear();
  for (const model::SequenceRows& rows : batch.sequences) {
    if (auto ran = run(rows); !ran) return ran.error();
  }
  if (nan_) std::fill(logits_.begin(), logits_.end(), std::numeric_limits<float>::quiet_NaN());
  return model::StepHandle{1};
}

Result<model::StepOutput> FakeModel::collect(model::StepHandle) {
  return model::StepOutput{logits_, static_cast<int>(logits_.size()) / kFakeVocab, kFakeVocab};
}

Result<void> FakeModel::copy_block(BlockId from, BlockId to) {
  const auto at = [this](BlockId block) {
    return memory_.data() + kv_.block_bytes * static_cast<std::size_t>(block);
  };
  std::copy_n(at(from), kv_.block_bytes, at(to));
  return {};
}

std::vector<TokenId> expected_tokens(const GenerateRequest& request, std::uint32_t choice_index,
                                     std::size_t max_tokens, bool* stopped) {
  const SamplingParams& params = request.sampling;
  const std::vector<TokenId> eos{kFakeEos};
  std::vector<TokenId> tokens = request.prompt;
  std::uint64_t context = 0;
  std::uint64_t own = 0;
  std::size_t position = 0;
  std::vector<float> logits(kFakeVocab);
  sampling::Sampler sampler;
  if (stopped != nullptr) *stopped = false;
  while (true) {
    for (; position < tokens.size(); ++position) {
      own = mix(mix(context, static_cast<std::uint64_t>(tokens[position])), position);
      context = mix(context, own);
    }
    fake_logits(own, logits.data());
    const TokenId token =
        sampler
            .sample(logits, params,
                    {tokens, static_cast<std::uint32_t>(request.prompt.size()), choice_index, eos})
            .value()
            .token;
    const bool is_eos = token == kFakeEos && !params.ignore_eos;
    const auto& stops = params.stop_token_ids;
    if (is_eos || std::find(stops.begin(), stops.end(), token) != stops.end()) {
      if (stopped != nullptr) *stopped = true;
      break;
    }
    tokens.push_back(token);
    const std::size_t generated = tokens.size() - request.prompt.size();
    if (generated == params.max_tokens || tokens.size() == max_tokens) break;
  }
  return {tokens.begin() + static_cast<std::ptrdiff_t>(request.prompt.size()), tokens.end()};
}

}  // namespace thaw::scheduler
