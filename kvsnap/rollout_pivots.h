#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <vector>

#include "kvsnap/rollout.h"

namespace thaw::kvsnap {

/// Generated tokens that two rollouts have in common from the first on.
std::size_t common_tokens(const Rollout& a, const Rollout& b);

/// Where `token` stood among the likeliest at a place: its rank from 0 and its logprob.
struct Ranked {
  std::size_t rank = 0;
  std::optional<double> logprob;
};
/// Nothing where it is not among them.
std::optional<Ranked> find_in_topk(const RolloutToken& place, TokenId token);

/// A place where rollouts that were the same until there go on differently.
struct Pivot {
  struct Option {
    std::optional<TokenChoice> token;  ///< nothing: these end here
    std::vector<std::size_t> members;  ///< rollouts that took it, likeliest first
    std::optional<std::size_t> next;  ///< the pivot at which the members part
  };
  std::size_t position = 0;  ///< in the generated tokens
  std::vector<Option> options;  ///< that of the likeliest member first
};

/// The pivots of rollouts of one prompt: the first is where they part first, the others hang on it
/// by Option::next. Empty where all are the same.
std::vector<Pivot> find_pivots(std::span<const Rollout> rollouts);

/// Rollouts by seq_logprob, the likeliest first; those without logprobs at the end.
std::vector<std::size_t> rank_rollouts(std::span<const Rollout> rollouts);

/// Rollouts that continue one prompt of one model.
struct Siblings {
  std::vector<std::size_t> members;
};
/// In the order of their first members.
std::vector<Siblings> group_siblings(std::span<const Rollout> rollouts);

}  // namespace thaw::kvsnap
