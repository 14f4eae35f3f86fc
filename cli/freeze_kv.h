#pragma once

#include <cstdint>
#include <string>

#include <CLI/CLI.hpp>

#include "cli/model_loader.h"
#include "cli/model_paths.h"
#include "engine/base/result.h"

namespace thaw::cli {

/// The KV of one prompt, computed while a model is frozen.
struct FreezeKvSettings {
  std::string output;  ///< .thawkv file; empty: none
  std::string prompt;  ///< text, or @FILE
  bool is_system_message = false;  ///< rendered by the chat template
  std::string tenant;  ///< whose requests may use it
  std::string device = "cpu";
  std::string kv_dtype = "bf16";
};

void add_freeze_kv_options(CLI::App& command, FreezeKvSettings& settings);

/// Errors: settings without each other, a prompt shorter than a block.
Result<void> check_freeze_kv(const FreezeKvSettings& settings);

/// Prefills the prompt as `thaw serve` would and writes the KV of its whole blocks: a server of
/// this model, device and KV type that is given the file (--kv-snapshot) does not prefill them.
Result<void> freeze_kv(const FreezeKvSettings& settings, const ModelLoader& model,
                       const ModelPaths& paths);

}  // namespace thaw::cli
