#pragma once

#include <memory>

#include "engine/model/model.h"

namespace thaw::model {

/// The Llama family: Llama 2 and 3, SmolLM2, Mistral, TinyLlama. Errors: missing or misshapen
/// tensor. `kv` has room for `num_blocks` blocks; rows are refused from `max_positions` on.
/// Source: Touvron et al., arXiv:2302.13971, and the Llama 3 report, arXiv:2407.21783.
Result<std::unique_ptr<Model>> make_llama(ops::Device& device,
                                          const checkpoint::WeightImageView& image,
                                          const ModelConfig& config, const ops::PagedKv& kv,
                                          int num_blocks, int max_positions);

}  // namespace thaw::model
