#pragma once

#include "cli/settings.h"
#include "engine/base/result.h"

namespace thaw::cli {

/// `thaw serve`: loads the model, starts the pool and the server, serves until SIGTERM or SIGINT,
/// drains. Returns when everything has ended. Errors are the user's to read: one line each.
Result<void> run_serve(ServeSettings settings, const ModelPaths& paths);

}  // namespace thaw::cli
