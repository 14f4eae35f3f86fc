#pragma once

#include <string>

#include "engine/base/result.h"

namespace thaw::checkpoint {

enum class ModelKind { kGguf, kHuggingFace, kThaw };

/// Where a model's files are.
struct ModelLocation {
  ModelKind kind = ModelKind::kGguf;
  std::string path;  ///< a GGUF or .thaw file, or a directory of Hugging Face's files
  std::string name;  ///< "org/name", or the directory's or the file's name
};

/// Finds what a user calls a model:
/// - a GGUF file, or any part of a split one; a .thaw file that `thaw freeze` wrote;
/// - a directory with config.json and safetensors, or with one GGUF model;
/// - "org/name" or "org/name@revision" in `hub_cache`, Hugging Face's local cache
///   (models--org--name with refs/ and snapshots/). A path that exists comes first.
/// Nothing is fetched. Errors say what was looked for, and which command downloads it; which
/// weights a directory has that are not read (pickled ones); which GGUF files it has where there
/// are several. Source of the cache's layout: "Manage huggingface_hub cache-system" of
/// huggingface_hub's docs.
Result<ModelLocation> locate_model(const std::string& model, const std::string& hub_cache);

}  // namespace thaw::checkpoint
