#pragma once

#include <string>
#include <vector>

#include "engine/base/result.h"
#include "engine/checkpoint/stored_tensor.h"
#include "engine/model/source.h"
#include "engine/model/tensor_list.h"

namespace thaw::cli {

/// The tensors of one weights region, one after another.
using RegionTensors = std::vector<const checkpoint::StoredTensor*>;

/// The tensors of each parameter of vLLM's module, in the order of its named_parameters(): how the
/// public project's files hold a model with Hugging Face's names.
std::vector<std::vector<model::TensorRule>> vllm_parameters(const model::ModelConfig& config);

/// How a model's tensors are laid out over the regions of a .thaw file. Readers of the public
/// project take regions by their order, as the parameters of vLLM's module: one region for q, k and
/// v together and one for gate and up, a layer's matrices before its norms. Models with Hugging
/// Face's names are laid out so. GGUF models, which vLLM does not hold as parameters of such
/// a form, have a region for each tensor, in the order of the forward pass. Errors: those of
/// model::plan_image(), so what cannot be served is not frozen.
Result<std::vector<RegionTensors>> layout_regions(const model::ModelSource& source);

}  // namespace thaw::cli
