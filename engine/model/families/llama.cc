#include "engine/model/families/family.h"

namespace thaw::model {
namespace {

void read_gguf_llama(GgufKeys& keys, ModelConfig& config) {
  read_gguf_decoder(keys, config);
  config.rope.half_split = false;  // GGUF permutes Q and K so that rotated pairs lie side by side
}

void read_hf_llama(JsonKeys& keys, ModelConfig& config) {
  read_hf_decoder(keys, config);
  read_hf_head(keys, config, /*default_tied=*/false);
  config.qkv_bias = config.o_bias = keys.flag("attention_bias", false);
  config.mlp_bias = keys.flag("mlp_bias", false);
}

}  // namespace

// Llama 2 and 3, SmolLM2, TinyLlama; GGUF files of Mistral and others that say "llama".
// Source: Touvron et al., arXiv:2302.13971; the Llama 3 report, arXiv:2407.21783.
const Family kLlama = {"llama", "llama", "LlamaForCausalLM", read_gguf_llama, read_hf_llama};

}  // namespace thaw::model
