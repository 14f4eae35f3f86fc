#include "cli/rewind.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <utility>

#include "cli/handle_report.h"
#include "kvsnap/json_keys.h"
#include "kvsnap/rollout_pivots.h"

namespace thaw::cli {
namespace {

using kvsnap::or_null;
using kvsnap::Rollout;
using kvsnap::RolloutToken;
using nlohmann::ordered_json;

constexpr std::size_t kTextColumns = 220;
constexpr std::size_t kShownTokens = 60;

ordered_json choice_json(const kvsnap::TokenChoice& choice) {
  return {{"token_id", choice.token_id},
          {"text", or_null(choice.text)},
          {"logprob", or_null(choice.logprob)}};
}

std::string number(double value, int digits) {
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", digits, value);
  return text;
}

std::string sampling_text(const Rollout& rollout) {
  const ordered_json sampling = ordered_json::parse(rollout.sampling_json, nullptr, false);
  std::string text;
  for (const char* key : {"temperature", "top_p", "top_k", "seed", "n"}) {
    if (!sampling.is_object() || !sampling.contains(key) || sampling[key].is_null()) continue;
    text += (text.empty() ? "" : ", ") + std::string(key) + " " + sampling[key].dump();
  }
  return text.empty() ? "unknown" : text;
}

std::string text_after(const Rollout& rollout, std::size_t position) {
  std::string text;
  const std::size_t end = std::min(rollout.tokens.size(), position + kShownTokens);
  for (std::size_t i = position; i < end; ++i)
    text += rollout.tokens[i].chosen.text.value_or("");
  return text;
}

/// What one thought, where they part, of the token that the other took.
struct Counterfactual {
  std::optional<kvsnap::Ranked> b_in_a;  ///< b's token among a's likeliest
  std::optional<kvsnap::Ranked> a_in_b;
  std::optional<double> margin;  ///< by which a's token was likelier than b's, as a scored them
};

Counterfactual compare_choices(const RolloutToken& a, const RolloutToken& b) {
  Counterfactual found{
      kvsnap::find_in_topk(a, b.chosen.token_id), kvsnap::find_in_topk(b, a.chosen.token_id), {}};
  if (a.chosen.logprob && found.b_in_a && found.b_in_a->logprob)
    found.margin = *a.chosen.logprob - *found.b_in_a->logprob;
  return found;
}

std::size_t common_prompt(const Rollout& a, const Rollout& b) {
  const auto end = std::ranges::mismatch(a.prompt_token_ids, b.prompt_token_ids).in1;
  return static_cast<std::size_t>(end - a.prompt_token_ids.begin());
}

}  // namespace

std::string token_text(const Look& look, const kvsnap::TokenChoice& choice) {
  if (!choice.text || choice.text->empty()) return "<" + std::to_string(choice.token_id) + ">";
  return "\"" + clipped(look, *choice.text, 40) + "\"";
}

std::string logprob_text(const std::optional<double>& logprob) {
  return logprob ? number(*logprob, 2) : "n/a";
}

std::string text_before(const Rollout& rollout, std::size_t position) {
  constexpr std::size_t kTokens = 12;
  std::string text;
  for (std::size_t i = position - std::min(position, kTokens); i < position; ++i)
    text += rollout.tokens[i].chosen.text.value_or("");
  return text;
}

std::string verdict(double margin) {
  const double size = std::abs(margin);
  return size < 1 ? "a close call" : size < 3 ? "a confident split" : "a decisive split";
}

Result<NamedRollout> open_rollout(const std::string& path) {
  auto rollout = kvsnap::read_rollout(kvsnap::system_io(kvsnap::IoMode::kNoLinks), path);
  if (!rollout) return std::move(rollout).error();
  NamedRollout named{path, "", *std::move(rollout)};
  named.name = named.rollout.label.value_or("");
  if (!named.name.empty()) return named;
  std::error_code ignored;
  auto whole = std::filesystem::absolute(path, ignored).lexically_normal();
  if (!whole.has_filename() || whole.filename() == kvsnap::kRolloutFile)
    whole = whole.parent_path();
  named.name = whole.filename().string();
  return named;
}

ordered_json rollout_json(const NamedRollout& named) {
  const Rollout& rollout = named.rollout;
  const auto scores = rollout.scores();
  ordered_json out = {{"name", named.name},
                      {"path", named.path},
                      {"rollout_id", rollout.rollout_id},
                      {"parent_id", or_null(rollout.parent_id)},
                      {"label", or_null(rollout.label)},
                      {"model_id", rollout.model_id},
                      {"fork_index", rollout.fork_index},
                      {"prompt_tokens", rollout.prompt_token_ids.size()},
                      {"n_tokens", rollout.tokens.size()},
                      {"n_scored", scores ? scores->num_scored : 0}};
  out["seq_logprob"] = scores ? ordered_json(scores->seq_logprob) : ordered_json(nullptr);
  out["mean_logprob"] = scores ? ordered_json(scores->mean_logprob) : ordered_json(nullptr);
  out["perplexity"] = scores ? ordered_json(scores->perplexity) : ordered_json(nullptr);
  out["sampling"] = ordered_json::parse(rollout.sampling_json, nullptr, false);
  out["created_at"] = rollout.created_at;
  out["text"] = rollout.text;
  return out;
}

std::string format_rollout(const Look& look, const NamedRollout& named) {
  const Rollout& rollout = named.rollout;
  Table table;
  const auto row = [&](const char* label, const std::string& value) {
    table.add({styled(look, Style::kDim, label), value});
  };
  row("model", printable(look, rollout.model_id));
  if (!rollout.rollout_id.empty())
    row("id", styled(look, Style::kId, printable(look, short_id(rollout.rollout_id))));
  if (rollout.parent_id)
    row("forked from", styled(look, Style::kId, printable(look, short_id(*rollout.parent_id))));
  row("trunk", counted(rollout.prompt_token_ids.size(), "prompt token"));
  row("generated", counted(rollout.tokens.size(), "token"));
  if (const auto scores = rollout.scores()) {
    row("seq logprob", number(scores->seq_logprob, 2));
    row("mean logprob", number(scores->mean_logprob, 3));
    row("perplexity", number(scores->perplexity, 2));
  } else {
    row("logprobs", "not captured");
  }
  row("sampling", printable(look, sampling_text(rollout)));
  if (rollout.created_at > 0) row("created", utc_time(rollout.created_at));
  if (!rollout.text.empty()) row("text", "\"" + clipped(look, rollout.text, kTextColumns) + "\"");
  return "rollout " + styled(look, Style::kBold, printable(look, named.name)) + "\n" +
         table.render("  ");
}

ordered_json rollout_diff_json(const NamedRollout& a, const NamedRollout& b) {
  const auto side = [](const NamedRollout& named) {
    ordered_json out = rollout_json(named);
    out.erase("text");
    return out;
  };
  const std::size_t at = kvsnap::common_tokens(a.rollout, b.rollout);
  ordered_json out = {{"a", side(a)},
                      {"b", side(b)},
                      {"same_model", a.rollout.model_id == b.rollout.model_id},
                      {"same_prompt", a.rollout.prompt_token_ids == b.rollout.prompt_token_ids},
                      {"shared_prompt_tokens", common_prompt(a.rollout, b.rollout)},
                      {"shared_tokens", at},
                      {"pivot", nullptr}};
  if (at >= std::min(a.rollout.tokens.size(), b.rollout.tokens.size())) return out;
  const RolloutToken& of_a = a.rollout.tokens[at];
  const RolloutToken& of_b = b.rollout.tokens[at];
  const Counterfactual found = compare_choices(of_a, of_b);
  const auto ranked = [](const std::optional<kvsnap::Ranked>& value) {
    return value ? ordered_json{{"rank", value->rank + 1}, {"logprob", or_null(value->logprob)}}
                 : ordered_json(nullptr);
  };
  out["pivot"] = {{"position", at},
                  {"text_before", text_before(a.rollout, at)},
                  {"a", choice_json(of_a.chosen)},
                  {"b", choice_json(of_b.chosen)},
                  {"b_in_a", ranked(found.b_in_a)},
                  {"a_in_b", ranked(found.a_in_b)},
                  {"margin", or_null(found.margin)}};
  return out;
}

std::string format_rollout_diff(const Look& look, const NamedRollout& a, const NamedRollout& b) {
  const Rollout& of_a = a.rollout;
  const Rollout& of_b = b.rollout;
  const auto scores_a = of_a.scores();
  const auto scores_b = of_b.scores();
  Table sides({3, 4, 5});
  const auto side = [&](const char* letter, Style style, const NamedRollout& one,
                        const std::optional<kvsnap::RolloutScores>& scores) {
    std::vector<std::string> row = {
        styled(look, style, letter), styled(look, style, printable(look, one.name)),
        styled(look, Style::kId, printable(look, short_id(one.rollout.rollout_id))),
        counted(one.rollout.tokens.size(), "token")};
    if (scores) {
      row.push_back("seq logprob " + number(scores->seq_logprob, 2));
      row.push_back("perplexity " + number(scores->perplexity, 2));
    } else {
      row.emplace_back("no logprobs");
    }
    sides.add(std::move(row));
  };
  side("A", Style::kA, a, scores_a);
  side("B", Style::kB, b, scores_b);
  Table facts;
  const auto row = [&](const char* label, const std::string& value) {
    facts.add({styled(look, Style::kDim, label), value});
  };
  row("model", of_a.model_id == of_b.model_id ? "same, " + printable(look, of_a.model_id)
                                              : "differ: A " + printable(look, of_a.model_id) +
                                                    ", B " + printable(look, of_b.model_id));
  row("trunk", of_a.prompt_token_ids == of_b.prompt_token_ids
                   ? "same, " + counted(of_a.prompt_token_ids.size(), "prompt token")
                   : "differ: the first " + counted(common_prompt(of_a, of_b), "prompt token") +
                         " are the same");
  if (scores_a && scores_b) {
    const double gap = scores_a->seq_logprob - scores_b->seq_logprob;
    row("likelier", gap == 0
                        ? "neither"
                        : std::string(gap > 0 ? "A" : "B") + " by " + number(std::abs(gap), 2));
  }
  const std::size_t at = kvsnap::common_tokens(of_a, of_b);
  const std::size_t shorter = std::min(of_a.tokens.size(), of_b.tokens.size());
  const std::string head = sides.render() + "\n";
  if (at >= shorter) {
    const std::size_t longer = std::max(of_a.tokens.size(), of_b.tokens.size());
    row("pivot", longer == shorter
                     ? "none: the same tokens"
                     : std::string("none: ") + (of_a.tokens.size() > shorter ? "A" : "B") +
                           " goes on for " + counted(longer - shorter, "token"));
    return head + facts.render("  ");
  }
  const RolloutToken& token_a = of_a.tokens[at];
  const RolloutToken& token_b = of_b.tokens[at];
  const Counterfactual found = compare_choices(token_a, token_b);
  row("pivot", "generated token " + styled(look, Style::kBold, grouped(at)) + ", after " +
                   counted(at, "token") + " that are the same");
  const auto choice = [&](const char* label, Style style, const RolloutToken& token,
                          const char* other, const std::optional<kvsnap::Ranked>& ranked) {
    std::string value = styled(look, style, token_text(look, token.chosen)) + ", logprob " +
                        logprob_text(token.chosen.logprob);
    if (ranked)
      value += std::string("; ") + other + " had it at rank " + std::to_string(ranked->rank + 1) +
               ", logprob " + logprob_text(ranked->logprob);
    row(label, value);
  };
  choice("A took", Style::kA, token_a, "B", found.a_in_b);
  choice("B took", Style::kB, token_b, "A", found.b_in_a);
  if (found.margin) {
    row("decided", std::string("to A, ") + (*found.margin >= 0 ? "its own" : "B's") +
                       " token was likelier by " + number(std::abs(*found.margin), 2) + ": " +
                       verdict(*found.margin));
  }
  std::string out = head + facts.render("  ");
  const std::string before = text_before(of_a, at);
  const std::string after_a = text_after(of_a, at);
  const std::string after_b = text_after(of_b, at);
  if (after_a.empty() && after_b.empty()) return out;
  if (!before.empty())
    out += "\n  " + styled(look, Style::kDim, "both") + " " + quoted_end(look, before) + "\n";
  return out + side_by_side(look, "A " + a.name, after_a, "B " + b.name, after_b);
}

Result<void> run_rewind_inspect(const std::string& path, bool json) {
  const auto named = open_rollout(path);
  if (!named) return named.error();
  if (json) {
    print_json(rollout_json(*named));
  } else {
    std::fputs(format_rollout(look_of_stdout(), *named).c_str(), stdout);
  }
  return {};
}

Result<void> run_rewind_diff(const std::string& path_a, const std::string& path_b, bool json) {
  const auto a = open_rollout(path_a);
  if (!a) return a.error();
  const auto b = open_rollout(path_b);
  if (!b) return b.error();
  if (json) {
    print_json(rollout_diff_json(*a, *b));
  } else {
    std::fputs(format_rollout_diff(look_of_stdout(), *a, *b).c_str(), stdout);
  }
  return {};
}

}  // namespace thaw::cli
