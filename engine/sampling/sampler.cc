#include "engine/sampling/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "engine/base/random.h"
#include "engine/sampling/processors.h"
#include "engine/sampling/reduce.h"

namespace thaw::sampling {
namespace {

// A total order, so that what std::partial_sort and std::sort do inside cannot matter.
struct RanksBefore {
  std::span<const float> logits;
  bool operator()(TokenId a, TokenId b) const {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  }
};

// As pick(), over weights that are few: one after the other.
std::size_t pick_ranked(std::span<const double> weights, double target) {
  DrawWalk walk{target};
  for (int i = 0; i < static_cast<int>(weights.size()); ++i)
    if (walk.passes(i, weights[static_cast<std::size_t>(i)])) break;
  return static_cast<std::size_t>(walk.index);
}

}  // namespace

Result<SampledToken> Sampler::sample(std::span<const float> logits, const SamplingParams& params,
                                     const SamplingContext& context) {
  const auto raw_largest = checked_max(logits);
  if (!raw_largest) return raw_largest.error();
  SampledToken sampled;
  if (!needs_processing(params, context)) {
    sampled.token = draw(logits, *raw_largest, params, context);
  } else {
    processed_.assign(logits.begin(), logits.end());
    counts_.resize(std::max(counts_.size(), logits.size()), 0);
    process_logits(processed_, params, context, counts_);
    const auto largest = checked_max(processed_);
    if (!largest) return largest.error();
    sampled.token = draw(processed_, *largest, params, context);
  }
  if (params.top_logprobs >= 0) add_logprobs(logits, *raw_largest, params.top_logprobs, sampled);
  return sampled;
}

Result<PromptLogprob> Sampler::score(std::span<const float> logits, TokenId token,
                                     std::int32_t num_top) {
  const auto largest = checked_max(logits);
  if (!largest) return largest.error();
  SampledToken sampled;
  sampled.token = token;
  add_logprobs(logits, *largest, num_top, sampled);
  const auto is_likelier = [&](std::size_t other) {
    return logits[other] > logits[token] ||
           (logits[other] == logits[token] && other < static_cast<std::size_t>(token));
  };
  std::uint32_t rank = 1;
  for (std::size_t other = 0; other < logits.size(); ++other)
    rank += is_likelier(other) ? 1 : 0;
  return PromptLogprob{sampled.logprob, rank, std::move(sampled.top_logprobs)};
}

TokenId Sampler::draw(std::span<const float> logits, float largest, const SamplingParams& params,
                      const SamplingContext& context) {
  if (params.temperature == 0.0F || params.top_k == 1)
    return static_cast<TokenId>(index_of(logits, largest));
  const double uniform = token_uniform(params.seed, context.choice_index, context.tokens.size());
  const bool top_k_is_on =
      params.top_k > 0 && static_cast<std::size_t>(params.top_k) < logits.size();
  if (top_k_is_on) {
    keep_top_k(logits, largest, params);
    return draw_from_best(params, uniform);
  }
  weights_.resize(logits.size());
  compute_weights(logits, largest, params.temperature, params.min_p, weights_.data());
  total_weight_ = sum_blocks(weights_, block_sums_);
  if (params.top_p >= 1.0F)
    return static_cast<TokenId>(pick(weights_, block_sums_, uniform * total_weight_));
  keep_nucleus(logits, params);
  return draw_from_best(params, uniform);
}

// Leaves in ids_ the top_k best, best first, less those under min_p.
void Sampler::keep_top_k(std::span<const float> logits, float largest,
                         const SamplingParams& params) {
  ids_.resize(logits.size());
  std::iota(ids_.begin(), ids_.end(), 0);
  std::partial_sort(ids_.begin(), ids_.begin() + params.top_k, ids_.end(), RanksBefore{logits});
  ids_.resize(static_cast<std::size_t>(params.top_k));
  ranked_weights_.clear();
  for (TokenId id : ids_) {
    const double weight = draw_weight(logits[id], largest, params.temperature, params.min_p);
    if (weight <= 0.0) break;
    ranked_weights_.push_back(weight);
  }
  ids_.resize(ranked_weights_.size());
  total_weight_ = ordered_sum(ranked_weights_);
}

// Leaves in ids_, best first, at least the nucleus. Tokens lighter than an equal share of what
// top_p leaves out weigh less than that together, so the nucleus lies in the rest; of these only as
// many are sorted as it takes.
void Sampler::keep_nucleus(std::span<const float> logits, const SamplingParams& params) {
  const double lightest = (1.0 - params.top_p) * total_weight_ / static_cast<double>(logits.size());
  const double wanted = static_cast<double>(params.top_p) * total_weight_;
  ids_.clear();
  for (std::size_t i = 0; i < weights_.size(); ++i) {
    if (weights_[i] >= lightest && weights_[i] > 0.0) ids_.push_back(static_cast<TokenId>(i));
  }
  ranked_weights_.clear();
  double sum = 0.0;
  auto sorted = ids_.begin();
  for (std::ptrdiff_t count = 256; sorted != ids_.end() && sum < wanted; count *= 4) {
    const auto end = ids_.end() - sorted > count ? sorted + count : ids_.end();
    if (end != ids_.end()) std::nth_element(sorted, end, ids_.end(), RanksBefore{logits});
    std::sort(sorted, end, RanksBefore{logits});
    for (; sorted != end; ++sorted) {
      ranked_weights_.push_back(weights_[*sorted]);
      sum += ranked_weights_.back();
    }
  }
}

// Cuts the ranked tokens at top_p of total_weight_ and draws from them.
TokenId Sampler::draw_from_best(const SamplingParams& params, double uniform) {
  double kept = 0.0;
  std::size_t count = 0;
  const double wanted = static_cast<double>(params.top_p) * total_weight_;
  while (count < ranked_weights_.size()) {
    kept += ranked_weights_[count++];
    if (params.top_p < 1.0F && kept >= wanted) break;
  }
  return ids_[pick_ranked(std::span(ranked_weights_).first(count), uniform * kept)];
}

void Sampler::add_logprobs(std::span<const float> logits, float largest, std::int32_t num_top,
                           SampledToken& sampled) {
  weights_.resize(logits.size());
  compute_weights(logits, largest, 1.0F, 0.0F, weights_.data());
  const double log_sum = static_cast<double>(largest) + std::log(sum_blocks(weights_, block_sums_));
  const auto logprob = [&](TokenId id) { return static_cast<float>(logits[id] - log_sum); };
  sampled.logprob = logprob(sampled.token);
  if (num_top == 0) return;
  const auto count = std::min(static_cast<std::size_t>(num_top), logits.size());
  ids_.resize(logits.size());
  std::iota(ids_.begin(), ids_.end(), 0);
  std::partial_sort(ids_.begin(), ids_.begin() + static_cast<std::ptrdiff_t>(count), ids_.end(),
                    RanksBefore{logits});
  for (std::size_t i = 0; i < count; ++i)
    sampled.top_logprobs.push_back({ids_[i], logprob(ids_[i])});
}

}  // namespace thaw::sampling
