#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "cli/pool_backend.h"
#include "engine/base/result.h"

namespace thaw::cli {

/// Loads .thawkv files and keeps them for as long as the server runs, each for the owner that it
/// was written for. Returns when all are there; prints a line for each. Errors: those of
/// Backend::load(), with the file's name.
Result<void> load_kv_snapshots(PoolBackend& backend, const std::vector<std::string>& paths,
                               std::chrono::milliseconds deadline);

}  // namespace thaw::cli
