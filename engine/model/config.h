#pragma once

#include <optional>
#include <string>
#include <vector>

#include "engine/base/result.h"
#include "engine/base/types.h"

namespace thaw::model {

/// Of every real number in a file's description of a model: finite as float32, too.
inline constexpr double kLargestReal = 1e30;

/// How positions become angles, as transformers and GGUF name it. Every kind here is a table of
/// frequencies that does not depend on how long a text is; those that do would change keys that lie
/// in the cache.
enum class RopeScaling { kNone, kLinear, kLlama3, kYarn };

/// Rotary position embedding. Fields of a scaling that `scaling` does not name are left alone.
struct RopeConfig {
  double theta = 10000.0;
  int dim = 0;  ///< rotated dimensions of a head, even
  bool half_split = false;  ///< false: adjacent pairs, GGUF's permuted Llama order
  RopeScaling scaling = RopeScaling::kNone;
  double factor = 1.0;
  int original_positions = 0;  ///< context before it was stretched: llama3, yarn
  double low_freq_factor = 1.0;  ///< llama3
  double high_freq_factor = 4.0;  ///< llama3
  double beta_fast = 32.0;  ///< yarn
  double beta_slow = 1.0;  ///< yarn
  bool truncate = true;  ///< yarn: whole dimensions bound the ramp
  double magnitude = 1.0;  ///< yarn: of cosine and sine, the attention factor
};

/// What one layer does otherwise than its neighbours.
struct LayerConfig {
  int window = 0;  ///< keys that a row sees, its own included; 0: all
  bool rope = true;
};

/// Shape, constants and features of a decoder-only model; travels as JSON in the WeightImage's
/// document. The families' files (families/*.cc) fill it, the decoder computes it.
struct ModelConfig {
  std::string family;  ///< "llama", "mistral", "qwen2", "qwen3", "smollm3"
  int num_layers = 0;
  int hidden_size = 0;
  int intermediate_size = 0;
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int vocab_size = 0;
  int max_positions = 0;  ///< context the model was made for
  float rms_norm_eps = 1e-5F;
  RopeConfig rope;
  std::vector<LayerConfig> layers;  ///< [num_layers]
  bool tied_embeddings = false;  ///< the head is the embedding's matrix
  bool qkv_bias = false;
  bool o_bias = false;
  bool mlp_bias = false;  ///< of gate, up and down
  bool qk_norm = false;  ///< RMSNorm over each head of q and k, before RoPE
  bool rope_factors = false;  ///< a tensor divides the frequencies (GGUF's rope_freqs.weight)
  std::vector<TokenId> eos_token_ids;

  std::string to_json() const;
  static Result<ModelConfig> from_json(const std::string& text);
};

}  // namespace thaw::model
