#include "kvsnap/rollout.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <utility>

#include "kvsnap/json_keys.h"
#include "kvsnap/whole_file.h"

namespace thaw::kvsnap {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr std::uint64_t kRolloutVersion = 1;

ordered_json choice_json(const TokenChoice& choice) {
  return {{"token_id", choice.token_id},
          {"text", or_null(choice.text)},
          {"logprob", or_null(choice.logprob)}};
}

/// The same text with null for the numbers that are none, outside of strings.
std::string without_infinities(std::string_view text) {
  constexpr std::array<std::string_view, 3> kNames{"-Infinity", "Infinity", "NaN"};
  std::string out;
  out.reserve(text.size());
  bool in_string = false;
  while (!text.empty()) {
    if (in_string && text.front() == '\\' && text.size() > 1) {
      out += text.substr(0, 2);
      text.remove_prefix(2);
      continue;
    }
    if (text.front() == '"') in_string = !in_string;
    const auto* const name = std::ranges::find_if(
        kNames, [&](std::string_view known) { return !in_string && text.starts_with(known); });
    if (name == kNames.end()) {
      out += text.front();
      text.remove_prefix(1);
    } else {
      out += "null";
      text.remove_prefix(name->size());
    }
  }
  return out;
}

TokenChoice read_choice(JsonKeys& keys) {
  TokenChoice choice;
  keys.read("token_id", choice.token_id);
  keys.read("text", choice.text);
  keys.read("logprob", choice.logprob);
  if (choice.token_id < 0) keys.fail("token_id is " + std::to_string(choice.token_id));
  return choice;
}

Result<RolloutToken> read_token(const json& item, const std::string& where) {
  JsonKeys keys(item, where);
  RolloutToken token{read_choice(keys), {}};
  const json* topk = keys.find("topk");
  if (topk != nullptr && !topk->is_array()) keys.fail("topk is no list");
  if (auto read = keys.result(); !read) return std::move(read).error();
  if (topk == nullptr) return token;
  for (const json& alternative : *topk) {
    JsonKeys inner(alternative, where + ": topk");
    token.topk.push_back(read_choice(inner));
    if (auto read = inner.result(); !read) return std::move(read).error();
  }
  return token;
}

}  // namespace

std::optional<RolloutScores> Rollout::scores() const {
  RolloutScores scores;
  for (const RolloutToken& token : tokens) {
    if (!token.chosen.logprob) continue;
    ++scores.num_scored;
    scores.seq_logprob += *token.chosen.logprob;
  }
  if (scores.num_scored == 0) return std::nullopt;
  scores.mean_logprob = scores.seq_logprob / static_cast<double>(scores.num_scored);
  scores.perplexity = std::exp(-scores.mean_logprob);
  return scores;
}

Result<std::string> Rollout::to_json() const {
  ordered_json out = {{"version", kRolloutVersion},
                      {"rollout_id", rollout_id},
                      {"parent_id", or_null(parent_id)},
                      {"label", or_null(label)},
                      {"model_id", model_id},
                      {"prompt_token_ids", prompt_token_ids},
                      {"fork_index", fork_index},
                      {"sampling", ordered_json::parse(sampling_json, nullptr, false)},
                      {"text", text}};
  out["tokens"] = ordered_json::array();
  for (const RolloutToken& token : tokens) {
    ordered_json entry = choice_json(token.chosen);
    entry["topk"] = ordered_json::array();
    for (const TokenChoice& choice : token.topk)
      entry["topk"].push_back(choice_json(choice));
    out["tokens"].push_back(std::move(entry));
  }
  out["created_at"] = created_at;
  try {
    return out.dump(2) + "\n";
  } catch (const json::exception&) {
    return make_error(Errc::kInvalidArgument,
                      "a label or text of the rollout is not UTF-8, which JSON must be");
  }
}

Result<Rollout> Rollout::parse(std::string_view text) {
  json parsed = json::parse(text, nullptr, false);
  if (parsed.is_discarded()) parsed = json::parse(without_infinities(text), nullptr, false);
  JsonKeys keys(parsed, kRolloutFile);
  std::uint64_t version = 0;
  keys.read("version", version);
  if (auto read = keys.result(); !read) return std::move(read).error();
  if (version != kRolloutVersion) {
    return make_error(Errc::kUnsupported, std::string(kRolloutFile) + ": version " +
                                              std::to_string(version) + "; supported is 1");
  }
  Rollout rollout;
  keys.read_or("rollout_id", rollout.rollout_id);
  keys.read("parent_id", rollout.parent_id);
  keys.read("label", rollout.label);
  keys.read("model_id", rollout.model_id);
  keys.read_or("prompt_token_ids", rollout.prompt_token_ids);
  rollout.fork_index = rollout.prompt_token_ids.size();
  keys.read_or("fork_index", rollout.fork_index);
  keys.read_or("text", rollout.text);
  keys.read_or("created_at", rollout.created_at);
  if (const json* sampling = keys.find("sampling")) {
    if (sampling->is_object()) {
      rollout.sampling_json = sampling->dump();
    } else {
      keys.fail("sampling is no object");
    }
  }
  const json* tokens = keys.find("tokens");
  if (tokens == nullptr || !tokens->is_array()) keys.fail("tokens is no list");
  if (auto read = keys.result(); !read) return std::move(read).error();
  for (const json& item : *tokens) {
    auto token = read_token(
        item, std::string(kRolloutFile) + ": token " + std::to_string(rollout.tokens.size()));
    if (!token) return std::move(token).error();
    rollout.tokens.push_back(*std::move(token));
  }
  return rollout;
}

Result<Rollout> read_rollout(FileIo& io, const std::string& path) {
  std::error_code ignored;
  const std::string file =
      std::filesystem::is_directory(path, ignored) ? path + "/" + kRolloutFile : path;
  const auto text = read_whole_file(io, file, kMaxRolloutBytes);
  if (!text && text.error().code == Errc::kNotFound) {
    return make_error(Errc::kNotFound, path + " is no rollout: it is a directory that holds " +
                                           kRolloutFile + ", or that file");
  }
  if (!text) return text.error();
  auto rollout = Rollout::parse(*text);
  if (rollout) return rollout;
  Error error = std::move(rollout).error();
  error.message = path + ": " + error.message;
  return error;
}

}  // namespace thaw::kvsnap
