#pragma once

#include "engine/base/memory_map.h"
#include "engine/checkpoint/weight_image.h"
#include "engine/model/config.h"
#include "engine/model/source.h"
#include "engine/ops/packed_weight.h"

namespace thaw::model {

/// A WeightImage in shared memory, ready to be handed to worker processes.
struct LoadedImage {
  UniqueFd fd;  ///< memfd
  std::size_t size_bytes = 0;
  ModelConfig config;
  Hash128 digest;
};

/// Packs a checkpoint's tensors into a new memfd. Errors name the file and a tensor: missing,
/// misshapen, or one that nothing asked for.
Result<LoadedImage> build_image(const ModelSource& source, ops::ComputeMode mode,
                                ThreadPool& threads);

}  // namespace thaw::model
