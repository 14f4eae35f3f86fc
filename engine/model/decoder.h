#pragma once

#include <memory>

#include "engine/model/model.h"

namespace thaw::model {

/// The decoder that all families share, with the features that `config` names. Errors: missing or
/// misshapen tensor, a RoPE constant that gives no frequencies. `kv` has room for `num_blocks`
/// blocks; rows are refused from `max_positions` on. Source: Touvron et al., arXiv:2302.13971; the
/// families' files cite their own.
Result<std::unique_ptr<Model>> make_decoder(ops::Device& device,
                                            const checkpoint::WeightImageView& image,
                                            const ModelConfig& config, const ops::PagedKv& kv,
                                            int num_blocks, int max_positions);

}  // namespace thaw::model
