#pragma once

#include <span>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "cli/terminal.h"
#include "engine/base/result.h"
#include "kvsnap/handle_directory.h"
#include "kvsnap/handle_lineage.h"

namespace thaw::cli {

/// A directory of handles, and those in it that could not be read.
struct HandleFamily {
  struct Unread {
    std::string path;
    std::string reason;
  };
  std::string root;
  std::vector<kvsnap::HandleDirectory> handles;
  std::vector<Unread> unread;
};

nlohmann::ordered_json log_json(const HandleFamily& family);
/// A tree: names, ids, tokens, blocks, bytes, blocks shared with the parent, age at `now` (Unix
/// seconds).
std::string format_log(const Look& look, const HandleFamily& family, double now);

struct LogSettings {
  std::string root;
  bool json = false;
};

/// `thaw log` of files. One handle that is damaged is listed as such; the others are shown.
Result<void> run_log(const LogSettings& settings);

}  // namespace thaw::cli
