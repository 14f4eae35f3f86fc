#include "engine/model/families/family.h"

namespace thaw::model {
namespace {

constexpr int kDefaultHeadDim = 128;  ///< where config.json does not mention head_dim

void read_gguf_qwen3(GgufKeys& keys, ModelConfig& config) {
  read_gguf_decoder(keys, config);
  config.rope.half_split = true;
  config.qk_norm = true;
}

void read_hf_qwen3(JsonKeys& keys, ModelConfig& config) {
  keys.set_default("head_dim", kDefaultHeadDim);
  read_hf_decoder(keys, config);
  read_hf_head(keys, config, /*default_tied=*/false);
  config.qkv_bias = config.o_bias = keys.flag("attention_bias", false);
  config.qk_norm = true;
  read_hf_windows(keys, config, qwen_sliding_layers(keys, config));
}

}  // namespace

// Qwen3, dense: RMSNorm over each head of q and k, heads whose size does not follow from the hidden
// size. Source: the Qwen3 report, arXiv:2505.09388.
const Family kQwen3 = {"qwen3", "qwen3", "Qwen3ForCausalLM", read_gguf_qwen3, read_hf_qwen3};

}  // namespace thaw::model
