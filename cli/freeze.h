#pragma once

#include <cstdint>
#include <string>

#include <CLI/CLI.hpp>

#include "cli/freeze_kv.h"
#include "cli/model_paths.h"
#include "cli/s3_settings.h"
#include "engine/base/result.h"

namespace thaw::cli {

struct FreezeSettings {
  std::string model;  ///< as `thaw serve` takes it; empty: the default model
  std::string snapshot;  ///< .thaw file whose weights to take; empty: the model's own
  std::string output;  ///< file, or s3:// URL
  std::string dtype = "native";
  std::uint32_t tensor_parallel = 1;
  S3Settings s3;
  FreezeKvSettings kv;
};

void add_freeze_options(CLI::App& command, FreezeSettings& settings);

/// `thaw freeze`: writes a model as .thaw files that hold all that it takes to serve it.
Result<void> run_freeze(const FreezeSettings& settings, const ModelPaths& paths);

}  // namespace thaw::cli
