#pragma once

#include <string>

#include "cli/model_paths.h"
#include "cli/s3_settings.h"
#include "engine/base/result.h"

namespace thaw::cli {

struct InfoSettings {
  std::string model;  ///< as `thaw serve` takes it, or a container; empty: the default model
  bool json = false;
  bool verify = false;  ///< containers: compare every payload with its checksum
  S3Settings s3;
};

/// `thaw info`: prints what a model is and what of it is not supported, or what a .thaw or .thawkv
/// file holds, to stdout. Errors: the files'; kInvalidArgument where `verify` is asked of something
/// that has no checksums.
Result<void> run_info(const InfoSettings& settings, const ModelPaths& paths);

}  // namespace thaw::cli
