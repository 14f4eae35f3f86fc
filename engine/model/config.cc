#include "engine/model/config.h"

#include <nlohmann/json.hpp>

namespace thaw::model {

NLOHMANN_JSON_SERIALIZE_ENUM(RopeScaling, {{RopeScaling::kNone, "none"},
                                           {RopeScaling::kLinear, "linear"},
                                           {RopeScaling::kLlama3, "llama3"},
                                           {RopeScaling::kYarn, "yarn"}})
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(RopeConfig, theta, dim, half_split, scaling, factor,
                                   original_positions, low_freq_factor, high_freq_factor, beta_fast,
                                   beta_slow, truncate, magnitude)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(LayerConfig, window, rope)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(ModelConfig, family, num_layers, hidden_size, intermediate_size,
                                   num_heads, num_kv_heads, head_dim, vocab_size, max_positions,
                                   rms_norm_eps, rope, layers, tied_embeddings, qkv_bias, o_bias,
                                   mlp_bias, qk_norm, rope_factors, eos_token_ids)

std::string ModelConfig::to_json() const {
  return nlohmann::json(*this).dump();
}

Result<ModelConfig> ModelConfig::from_json(const std::string& text) {
  try {
    auto config = nlohmann::json::parse(text).get<ModelConfig>();
    if (config.layers.size() != static_cast<std::size_t>(config.num_layers)) {
      return make_error(Errc::kDataLoss,
                        "model configuration: " + std::to_string(config.num_layers) +
                            " layers, but " + std::to_string(config.layers.size()) +
                            " are described");
    }
    return config;
  } catch (const nlohmann::json::exception& error) {
    return make_error(Errc::kDataLoss, std::string("model configuration: ") + error.what());
  }
}

}  // namespace thaw::model
