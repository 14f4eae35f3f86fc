#include "cli/rewind_pivot.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <utility>

#include "cli/handle_report.h"
#include "cli/tree_lines.h"
#include "kvsnap/rollout_pivots.h"

namespace thaw::cli {
namespace {

using kvsnap::Pivot;
using kvsnap::Rollout;
using nlohmann::ordered_json;

/// Rollouts of one prompt with their pivots; indices are those of `rollouts`.
struct Group {
  std::vector<const NamedRollout*> named;
  std::vector<Rollout> rollouts;
  std::vector<Pivot> pivots;
  std::vector<std::size_t> ranking;
};

std::vector<Group> make_groups(const RolloutFamily& family) {
  std::vector<Rollout> all;
  all.reserve(family.rollouts.size());
  for (const NamedRollout& named : family.rollouts)
    all.push_back(named.rollout);
  std::vector<Group> groups;
  for (const kvsnap::Siblings& siblings : kvsnap::group_siblings(all)) {
    Group& group = groups.emplace_back();
    for (const std::size_t member : siblings.members) {
      group.named.push_back(&family.rollouts[member]);
      group.rollouts.push_back(all[member]);
    }
    group.pivots = kvsnap::find_pivots(group.rollouts);
    group.ranking = kvsnap::rank_rollouts(group.rollouts);
  }
  return groups;
}

/// The place where the likeliest rollout and the next one part: their tokens there decided.
struct Decision {
  std::size_t position = 0;
  const NamedRollout* best = nullptr;
  const NamedRollout* next = nullptr;
  const kvsnap::RolloutToken* token_best = nullptr;  ///< null: it ends there
  const kvsnap::RolloutToken* token_next = nullptr;
  std::optional<double> margin;  ///< by which the best one's token was likelier there
};

std::optional<Decision> find_decision(const Group& group) {
  if (group.ranking.size() < 2) return std::nullopt;
  const std::size_t first = group.ranking[0];
  const std::size_t second = group.ranking[1];
  const Rollout& best = group.rollouts[first];
  const Rollout& next = group.rollouts[second];
  if (!best.scores() || !next.scores()) return std::nullopt;
  Decision decision;
  decision.position = kvsnap::common_tokens(best, next);
  if (decision.position == best.tokens.size() && decision.position == next.tokens.size())
    return std::nullopt;
  decision.best = group.named[first];
  decision.next = group.named[second];
  const auto token = [&](const Rollout& rollout) {
    return decision.position < rollout.tokens.size() ? &rollout.tokens[decision.position] : nullptr;
  };
  decision.token_best = token(best);
  decision.token_next = token(next);
  if (decision.token_best != nullptr && decision.token_next != nullptr &&
      decision.token_best->chosen.logprob && decision.token_next->chosen.logprob) {
    decision.margin = *decision.token_best->chosen.logprob - *decision.token_next->chosen.logprob;
  }
  return decision;
}

ordered_json choice_json(const kvsnap::TokenChoice* choice) {
  if (choice == nullptr) return nullptr;
  return {{"token_id", choice->token_id},
          {"text", choice->text ? ordered_json(*choice->text) : ordered_json(nullptr)},
          {"logprob", choice->logprob ? ordered_json(*choice->logprob) : ordered_json(nullptr)}};
}

ordered_json group_json(const Group& group) {
  const Rollout& first = group.rollouts.front();
  ordered_json out = {{"model_id", first.model_id},
                      {"prompt_tokens", first.prompt_token_ids.size()},
                      {"rollouts", ordered_json::array()},
                      {"pivots", ordered_json::array()},
                      {"best", nullptr},
                      {"decided_by", nullptr}};
  for (const std::size_t member : group.ranking) {
    ordered_json entry = rollout_json(*group.named[member]);
    entry.erase("text");
    out["rollouts"].push_back(std::move(entry));
  }
  for (const Pivot& pivot : group.pivots) {
    ordered_json options = ordered_json::array();
    for (const Pivot::Option& option : pivot.options) {
      ordered_json names = ordered_json::array();
      for (const std::size_t member : option.members)
        names.push_back(group.named[member]->name);
      options.push_back(
          {{"token", choice_json(option.token ? &*option.token : nullptr)},
           {"rollouts", std::move(names)},
           {"next_pivot", option.next ? ordered_json(*option.next) : ordered_json(nullptr)}});
    }
    const std::size_t member = pivot.options.front().members.front();
    out["pivots"].push_back({{"position", pivot.position},
                             {"text_before", text_before(group.rollouts[member], pivot.position)},
                             {"options", std::move(options)}});
  }
  if (group.rollouts[group.ranking[0]].scores()) out["best"] = group.named[group.ranking[0]]->name;
  if (const auto decision = find_decision(group)) {
    const auto choice = [](const kvsnap::RolloutToken* token) {
      return choice_json(token == nullptr ? nullptr : &token->chosen);
    };
    out["decided_by"] = {
        {"position", decision->position},
        {"best", decision->best->name},
        {"token", choice(decision->token_best)},
        {"runner_up", decision->next->name},
        {"runner_up_token", choice(decision->token_next)},
        {"margin", decision->margin ? ordered_json(*decision->margin) : ordered_json(nullptr)}};
  }
  return out;
}

std::string seq_logprob(const Rollout& rollout) {
  const auto scores = rollout.scores();
  return logprob_text(scores ? std::optional(scores->seq_logprob) : std::nullopt);
}

/// The tree of pivots: options below the pivot where they were taken, pivots below options.
std::string draw_pivots(const Look& look, const Group& group) {
  struct Line {
    std::string text;
    std::string members;
    std::string scores;
  };
  std::vector<TreeNode> nodes;
  std::vector<Line> lines;
  std::vector<std::size_t> node_of_pivot(group.pivots.size());
  // Pivots come before those that hang on them.
  for (std::size_t i = 0; i < group.pivots.size(); ++i) {
    node_of_pivot[i] = nodes.size();
    nodes.emplace_back();
    const std::size_t member = group.pivots[i].options.front().members.front();
    const std::string before = text_before(group.rollouts[member], group.pivots[i].position);
    lines.push_back(
        {"token " + styled(look, Style::kBold, grouped(group.pivots[i].position)) +
             (before.empty() ? "" : " after \"" + clipped(look, before, 32, true) + "\""),
         "", ""});
    for (const Pivot::Option& option : group.pivots[i].options) {
      std::string members;
      std::string scores;
      for (const std::size_t one : option.members) {
        members += (members.empty() ? "" : ", ") + printable(look, group.named[one]->name);
        scores += (scores.empty() ? "" : ", ") + seq_logprob(group.rollouts[one]);
      }
      std::string token = "(ends)";
      if (option.token) {
        token = styled(look, Style::kShared, token_text(look, *option.token)) + " " +
                logprob_text(option.token->logprob);
      }
      nodes[node_of_pivot[i]].children.push_back(nodes.size());
      nodes.emplace_back();
      lines.push_back({std::move(token), std::move(members), std::move(scores)});
    }
  }
  for (std::size_t i = 0; i < group.pivots.size(); ++i) {
    for (std::size_t j = 0; j < group.pivots[i].options.size(); ++j) {
      if (const auto next = group.pivots[i].options[j].next)
        nodes[node_of_pivot[i] + 1 + j].children.push_back(node_of_pivot[*next]);
    }
  }
  Table table;
  const std::vector<std::size_t> roots{0};
  for (const TreeLine& line : tree_lines(look, nodes, roots)) {
    Line& shown = lines[line.node];
    table.add({styled(look, Style::kDim, line.prefix) + shown.text,
               clipped(look, shown.members, 60),
               shown.scores.empty() ? "" : "seq logprob " + clipped(look, shown.scores, 40)});
  }
  return table.render("  ");
}

std::string format_group(const Look& look, const Group& group) {
  const Rollout& first = group.rollouts.front();
  std::string out = counted(group.rollouts.size(), "rollout") + ", trunk of " +
                    counted(first.prompt_token_ids.size(), "token") + ", " +
                    printable(look, first.model_id) + "\n";
  if (group.rollouts.size() < 2) return out + "  a pivot takes two rollouts of one prompt\n";
  if (group.pivots.empty()) {
    out += "  no divergence: the same " + counted(first.tokens.size(), "token") + "\n";
  } else {
    out += "  first divergence at generated token " + grouped(group.pivots[0].position) + "\n" +
           draw_pivots(look, group);
  }
  const NamedRollout& best = *group.named[group.ranking[0]];
  const auto scores = best.rollout.scores();
  if (!scores) return out + "  no ranking: the rollouts carry no logprobs\n";
  char perplexity[48];
  std::snprintf(perplexity, sizeof perplexity, "%.2f", scores->perplexity);
  out += "  best branch: " + styled(look, Style::kBold, printable(look, best.name)) +
         " (seq logprob " + logprob_text(scores->seq_logprob) + ", perplexity " + perplexity +
         ")\n";
  if (const auto decision = find_decision(group)) {
    const auto token = [&](const kvsnap::RolloutToken* taken) {
      return taken == nullptr ? std::string("its end") : token_text(look, taken->chosen);
    };
    out += "  decided by token " + grouped(decision->position) + ": " +
           token(decision->token_best) + " over " + token(decision->token_next) + " of " +
           printable(look, decision->next->name);
    if (const auto& margin = decision->margin)
      out += ", by " + logprob_text(margin) + " in logprob: " + verdict(*margin);
    out += "\n";
  }
  return out;
}

Result<std::vector<std::string>> find_rollouts(const std::string& root) {
  namespace fs = std::filesystem;
  std::error_code error;
  if (!fs::exists(root, error)) return make_error(Errc::kNotFound, root + ": no such directory");
  if (!fs::is_directory(root, error) || fs::exists(root + "/" + kvsnap::kRolloutFile, error))
    return std::vector{root};
  std::vector<std::string> found;
  for (fs::directory_iterator entry(root, error), end; !error && entry != end;
       entry.increment(error)) {
    std::error_code ignored;
    if (entry->is_symlink(ignored) || !entry->is_directory(ignored)) continue;
    if (fs::exists(entry->path() / kvsnap::kRolloutFile, ignored))
      found.push_back(entry->path().string());
  }
  if (error) return io_error("cannot read the directory " + root, error.value());
  std::ranges::sort(found);
  return found;
}

}  // namespace

ordered_json pivot_json(const RolloutFamily& family) {
  ordered_json out = {
      {"root", family.root}, {"groups", ordered_json::array()}, {"unread", ordered_json::array()}};
  for (const Group& group : make_groups(family))
    out["groups"].push_back(group_json(group));
  for (const RolloutFamily::Unread& unread : family.unread)
    out["unread"].push_back({{"path", unread.path}, {"reason", unread.reason}});
  return out;
}

std::string format_pivots(const Look& look, const RolloutFamily& family) {
  std::string out;
  for (const Group& group : make_groups(family))
    out += (out.empty() ? "" : "\n") + format_group(look, group);
  for (const RolloutFamily::Unread& unread : family.unread)
    out += "not read: " + printable(look, unread.reason) + "\n";
  return out;
}

Result<void> run_rewind_pivot(const std::string& root, bool json) {
  const auto found = find_rollouts(root);
  if (!found) return found.error();
  RolloutFamily family{root, {}, {}};
  for (const std::string& path : *found) {
    auto opened = open_rollout(path);
    if (opened) {
      family.rollouts.push_back(*std::move(opened));
    } else if (path == root) {
      return std::move(opened).error();
    } else {
      family.unread.push_back({path, opened.error().message});
    }
  }
  if (json) {
    print_json(pivot_json(family));
  } else if (family.rollouts.empty() && family.unread.empty()) {
    std::printf("no rollouts in %s\n", root.c_str());
  } else {
    std::fputs(format_pivots(look_of_stdout(), family).c_str(), stdout);
  }
  return {};
}

}  // namespace thaw::cli
