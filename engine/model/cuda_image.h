#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/base/result.h"
#include "engine/model/config.h"
#include "engine/ops/packed_weight.h"
#include "engine/ops/weight_tiles.h"

namespace thaw::model {

// Images for CUDA hold one entry for every weight that one launch reads: `layers.N.qkv` (the rows
// of q, k and v one after another), `layers.N.o`, `layers.N.gate_up` (interleaved, WeightRows),
// `layers.N.down`, `token_embedding`, `head` where it is not tied, and `layers.N.qkv_bias`; the
// other vectors as on the CPU. Nothing here needs a CUDA toolkit.

/// Whether CUDA's kernels can compute `config` from weights packed as `packing` says. Errors:
/// kUnsupported, naming the value and what is supported.
Result<void> check_cuda_model(const ModelConfig& config, const ops::PackingOptions& packing);

/// The entry that a tensor of tensor_list() is a part of, and how its rows lie there.
struct CudaPlace {
  std::string entry;
  ops::cuda::WeightRows placement = ops::cuda::WeightRows::kPlain;
};
CudaPlace cuda_place(const std::string& tensor);

/// An entry of an image for CUDA and its shape; vectors have one row.
struct CudaEntry {
  std::string name;
  bool is_matrix = false;
  std::int64_t rows = 1;
  std::int64_t cols = 0;
};
/// Every entry of the image of a model, in order.
std::vector<CudaEntry> cuda_entries(const ModelConfig& config);

}  // namespace thaw::model
