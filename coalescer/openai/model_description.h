#pragma once

#include <cstdint>
#include <string>

#include "engine/base/generate.h"

namespace thaw::coalescer {

/// What the server knows of the model that it serves; /v1/models tells it.
struct ModelDescription {
  std::string family;  ///< "llama"
  std::uint64_t num_parameters = 0;
  std::string dtype;  ///< of most of the stored weights: "BF16", "Q4_1"
  std::string quantization;  ///< of the weights as they are computed with; empty: none
  std::uint32_t context_length = 0;  ///< tokens that the model was made for
  /// Temperature, top_p, top_k, min_p and repetition_penalty of requests that leave them out.
  SamplingParams default_sampling;
};

}  // namespace thaw::coalescer
