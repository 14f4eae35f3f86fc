#pragma once

#include <functional>
#include <string>

#include "engine/base/memory_map.h"
#include "engine/checkpoint/gguf.h"
#include "engine/checkpoint/weight_image.h"
#include "engine/model/config.h"
#include "engine/ops/packed_weight.h"

namespace thaw::model {

/// Configuration of a GGUF file. Errors name the architecture, tensor type or RoPE kind that is not
/// supported and those that are.
Result<ModelConfig> config_from_gguf(const checkpoint::GgufFile& file);

/// A WeightImage in shared memory, ready to be handed to worker processes.
struct LoadedImage {
  UniqueFd fd;  ///< memfd
  std::size_t size_bytes = 0;
  ModelConfig config;
  Hash128 digest;
};

/// Packs a GGUF file's tensors into a new memfd. Errors: as config_from_gguf; a missing or
/// misshapen tensor, named.
Result<LoadedImage> build_image(const checkpoint::GgufFile& file, ops::ComputeMode mode,
                                ThreadPool& threads);

}  // namespace thaw::model
