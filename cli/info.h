#pragma once

#include <string>

#include "cli/model_paths.h"
#include "engine/base/result.h"

namespace thaw::cli {

struct InfoSettings {
  std::string model;  ///< as `thaw serve` takes it; empty: the default model
  bool json = false;
};

/// `thaw info`: prints what a model is and what of it is not supported, to stdout.
Result<void> run_info(const InfoSettings& settings, const ModelPaths& paths);

}  // namespace thaw::cli
