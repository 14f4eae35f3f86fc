#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/model/config.h"

namespace thaw::model {

/// A tensor that a model needs: its name in the image, in GGUF files and in Hugging Face
/// directories, and its shape.
struct TensorRule {
  std::string name;
  std::string gguf_name;  ///< empty: GGUF has none
  std::string hf_name;  ///< empty: Hugging Face has none
  bool is_matrix = false;  ///< else a vector of `cols` float32
  std::int64_t rows = 1;  ///< outputs
  std::int64_t cols = 1;  ///< inputs
};

/// Every tensor of a decoder with the features that `config` names, in the order of the forward
/// pass.
std::vector<TensorRule> tensor_list(const ModelConfig& config);

/// Whether a tensor of a Hugging Face directory may lie there unused: tables that other programs
/// stored and that follow from the configuration, and the copy of a tied head.
bool is_redundant(const std::string& hf_name, const ModelConfig& config);

}  // namespace thaw::model
