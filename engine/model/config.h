#pragma once

#include <optional>
#include <string>
#include <vector>

#include "engine/base/result.h"
#include "engine/base/types.h"

namespace thaw::model {

/// Shape and constants of a decoder-only model; travels as JSON in the WeightImage's document.
struct ModelConfig {
  std::string family;  ///< "llama"
  int num_layers = 0;
  int hidden_size = 0;
  int intermediate_size = 0;
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int vocab_size = 0;
  int max_positions = 0;  ///< context the model was made for
  float rms_norm_eps = 1e-5F;
  double rope_theta = 10000.0;
  int rotary_dim = 0;
  bool rope_half_split = false;  ///< false: adjacent pairs, GGUF's permuted Llama order
  bool tied_embeddings = false;
  std::vector<TokenId> eos_token_ids;

  std::string to_json() const;
  static Result<ModelConfig> from_json(const std::string& text);
};

}  // namespace thaw::model
