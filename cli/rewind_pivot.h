#pragma once

#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "cli/rewind.h"
#include "cli/terminal.h"
#include "engine/base/result.h"

namespace thaw::cli {

/// The rollouts of a directory, and those that could not be read.
struct RolloutFamily {
  struct Unread {
    std::string path;
    std::string reason;
  };
  std::string root;
  std::vector<NamedRollout> rollouts;
  std::vector<Unread> unread;
};

/// Of every prompt: where its rollouts part, by which tokens, and which branch is the likeliest.
nlohmann::ordered_json pivot_json(const RolloutFamily& family);
std::string format_pivots(const Look& look, const RolloutFamily& family);

/// `thaw rewind pivot`: `root` holds rollouts, or directories with one each.
Result<void> run_rewind_pivot(const std::string& root, bool json);

}  // namespace thaw::cli
