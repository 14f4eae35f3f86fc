#pragma once

#include "coalescer/openai/model_description.h"
#include "engine/model/source.h"
#include "engine/ops/packed_weight.h"

namespace thaw::cli {

/// What the checkpoint proposes for requests that leave it out, over OpenAI's defaults. Values that
/// a request could not ask for are left alone. As in vLLM, `do_sample` changes nothing.
SamplingParams default_sampling(const model::GenerationDefaults& generation);

/// Weights of the model, as people count them; a tied head counts once.
std::uint64_t num_parameters(const model::ModelSource& source);

/// The type that most bytes of the weights are stored in.
checkpoint::DType main_dtype(const checkpoint::TensorSource& tensors);

/// What /v1/models tells. `use_generation`: with the checkpoint's defaults.
coalescer::ModelDescription describe_model(const model::ModelSource& source,
                                           const ops::PackingOptions& packing, bool use_generation);

}  // namespace thaw::cli
