#pragma once

#include <string>

namespace thaw::cli {

/// Where models are looked for. Filled by model_paths_from_environment() (cli/settings.h).
struct ModelPaths {
  std::string default_model;  ///< GGUF file that scripts/get_model.py fetches
  std::string hub_cache;  ///< Hugging Face's local cache
};

}  // namespace thaw::cli
