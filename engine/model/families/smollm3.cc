#include "engine/model/families/family.h"

namespace thaw::model {
namespace {

constexpr int kRopeInterval = 4;  ///< one layer in so many has no RoPE
constexpr double kDefaultTheta = 2000000.0;

void skip_rope_every(ModelConfig& config, int interval) {
  for (int i = interval - 1; i < config.num_layers; i += interval)
    config.layers[static_cast<std::size_t>(i)].rope = false;
}

void read_gguf_smollm3(GgufKeys& keys, ModelConfig& config) {
  read_gguf_decoder(keys, config);
  config.rope.half_split = false;
  skip_rope_every(config, kRopeInterval);  // no key says so
}

void read_hf_smollm3(JsonKeys& keys, ModelConfig& config) {
  read_hf_decoder(keys, config, kDefaultTheta);
  read_hf_head(keys, config, /*default_tied=*/true);
  config.qkv_bias = config.o_bias = keys.flag("attention_bias", false);
  config.mlp_bias = keys.flag("mlp_bias", false);
  if (const auto with_rope = keys.integers("no_rope_layers")) {  // 1: it has RoPE
    if (with_rope->size() < config.layers.size()) {
      keys.fail(Errc::kDataLoss, "no_rope_layers has " + std::to_string(with_rope->size()) +
                                     " entries for " + std::to_string(config.num_layers) +
                                     " layers");
      return;
    }
    for (std::size_t i = 0; i < config.layers.size(); ++i)
      config.layers[i].rope = (*with_rope)[i] != 0;
  } else {
    skip_rope_every(config, keys.integer("no_rope_layer_interval", 1 << 24, kRopeInterval));
  }
  std::vector<bool> slides(config.layers.size());
  for (std::size_t i = 0; i < slides.size(); ++i)
    slides[i] = !config.layers[i].rope;
  read_hf_windows(keys, config, slides);
}

}  // namespace

// SmolLM3: Llama with layers that have no RoPE. Source: its model card, and Yang et al.,
// arXiv:2501.18795, for the layers without.
const Family kSmolLm3 = {"smollm3", "smollm3", "SmolLM3ForCausalLM", read_gguf_smollm3,
                         read_hf_smollm3};

}  // namespace thaw::model
