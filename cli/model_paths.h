#pragma once

#include <string>

namespace thaw::cli {

/// Where models are looked for, and their packed weights kept. Filled by
/// model_paths_from_environment() (cli/settings.h).
struct ModelPaths {
  std::string default_model;  ///< GGUF file that scripts/get_model.py fetches
  std::string hub_cache;  ///< Hugging Face's local cache
  std::string images;  ///< directory of model::ImageCache
  std::string snapshots;  ///< directory of local copies of what lies in S3
};

}  // namespace thaw::cli
