#pragma once

#include <span>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "cli/terminal.h"
#include "engine/base/result.h"
#include "kvsnap/rollout.h"

namespace thaw::cli {

/// A rollout and where it was read from.
struct NamedRollout {
  std::string path;
  std::string name;  ///< its label, else the name of its directory
  kvsnap::Rollout rollout;
};

/// Errors: those of kvsnap::read_rollout().
Result<NamedRollout> open_rollout(const std::string& path);

nlohmann::ordered_json rollout_json(const NamedRollout& named);
std::string format_rollout(const Look& look, const NamedRollout& named);

/// Where two rollouts part, and what each thought of the other's token there.
nlohmann::ordered_json rollout_diff_json(const NamedRollout& a, const NamedRollout& b);
std::string format_rollout_diff(const Look& look, const NamedRollout& a, const NamedRollout& b);

/// A token as people read it: its text in quotes, else its id.
std::string token_text(const Look& look, const kvsnap::TokenChoice& choice);
/// "-1.25", or "n/a".
std::string logprob_text(const std::optional<double>& logprob);
/// The end of the generated text before `position`.
std::string text_before(const kvsnap::Rollout& rollout, std::size_t position);
/// How far the likelier of two tokens was ahead, in words: under 1 a close call, under 3 a
/// confident split, else a decisive one.
std::string verdict(double margin);

Result<void> run_rewind_inspect(const std::string& path, bool json);
Result<void> run_rewind_diff(const std::string& a, const std::string& b, bool json);

}  // namespace thaw::cli
