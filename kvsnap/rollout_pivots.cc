#include "kvsnap/rollout_pivots.h"

#include <algorithm>
#include <deque>
#include <numeric>
#include <utility>

namespace thaw::kvsnap {
namespace {

/// Rollouts that are the same up to `position`.
struct Group {
  std::vector<std::size_t> members;  // likeliest first
  std::size_t position = 0;
  std::optional<std::pair<std::size_t, std::size_t>> from;  // pivot and option that lead here
};

const TokenChoice* choice_at(const Rollout& rollout, std::size_t position) {
  return position < rollout.tokens.size() ? &rollout.tokens[position].chosen : nullptr;
}

bool same_choice(const TokenChoice* a, const TokenChoice* b) {
  if (a == nullptr || b == nullptr) return a == b;
  return a->token_id == b->token_id;
}

}  // namespace

std::size_t common_tokens(const Rollout& a, const Rollout& b) {
  const auto [end, ignored] = std::ranges::mismatch(
      a.tokens, b.tokens, {}, [](const RolloutToken& t) { return t.chosen.token_id; },
      [](const RolloutToken& t) { return t.chosen.token_id; });
  return static_cast<std::size_t>(end - a.tokens.begin());
}

std::optional<Ranked> find_in_topk(const RolloutToken& place, TokenId token) {
  for (std::size_t i = 0; i < place.topk.size(); ++i)
    if (place.topk[i].token_id == token) return Ranked{i, place.topk[i].logprob};
  return std::nullopt;
}

std::vector<std::size_t> rank_rollouts(std::span<const Rollout> rollouts) {
  std::vector<std::optional<double>> scores;
  for (const Rollout& rollout : rollouts) {
    const auto found = rollout.scores();
    scores.push_back(found ? std::optional(found->seq_logprob) : std::nullopt);
  }
  std::vector<std::size_t> order(rollouts.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  // An empty optional is less than any other.
  std::ranges::sort(order, [&](std::size_t a, std::size_t b) {
    return scores[a] == scores[b] ? a < b : scores[a] > scores[b];
  });
  return order;
}

std::vector<Pivot> find_pivots(std::span<const Rollout> rollouts) {
  std::vector<Pivot> pivots;
  std::deque<Group> waiting{{rank_rollouts(rollouts), 0, {}}};
  while (!waiting.empty()) {
    Group group = std::move(waiting.front());
    waiting.pop_front();
    if (group.members.size() < 2) continue;
    const Rollout& first = rollouts[group.members.front()];
    const auto all_choose_as_first = [&] {
      return std::ranges::all_of(group.members, [&](std::size_t member) {
        return same_choice(choice_at(rollouts[member], group.position),
                           choice_at(first, group.position));
      });
    };
    while (group.position < first.tokens.size() && all_choose_as_first())
      ++group.position;
    if (all_choose_as_first()) continue;  // they end together
    Pivot pivot{group.position, {}};
    for (const std::size_t member : group.members) {
      const TokenChoice* choice = choice_at(rollouts[member], group.position);
      auto option = std::ranges::find_if(pivot.options, [&](const Pivot::Option& known) {
        return same_choice(known.token ? &*known.token : nullptr, choice);
      });
      if (option == pivot.options.end()) {
        pivot.options.push_back(
            {choice == nullptr ? std::nullopt : std::optional(*choice), {}, {}});
        option = pivot.options.end() - 1;
      }
      option->members.push_back(member);
    }
    if (group.from) pivots[group.from->first].options[group.from->second].next = pivots.size();
    for (std::size_t i = 0; i < pivot.options.size(); ++i) {
      if (pivot.options[i].token)
        waiting.push_back({pivot.options[i].members, group.position + 1, {{pivots.size(), i}}});
    }
    pivots.push_back(std::move(pivot));
  }
  return pivots;
}

std::vector<Siblings> group_siblings(std::span<const Rollout> rollouts) {
  std::vector<Siblings> groups;
  for (std::size_t i = 0; i < rollouts.size(); ++i) {
    const auto found = std::ranges::find_if(groups, [&](const Siblings& group) {
      const Rollout& first = rollouts[group.members.front()];
      return first.model_id == rollouts[i].model_id &&
             first.prompt_token_ids == rollouts[i].prompt_token_ids;
    });
    if (found == groups.end()) {
      groups.push_back({{i}});
    } else {
      found->members.push_back(i);
    }
  }
  return groups;
}

}  // namespace thaw::kvsnap
