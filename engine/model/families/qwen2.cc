#include "engine/model/families/family.h"

namespace thaw::model {
namespace {

void read_gguf_qwen2(GgufKeys& keys, ModelConfig& config) {
  read_gguf_decoder(keys, config);
  config.rope.half_split = true;
  config.qkv_bias = true;
}

void read_hf_qwen2(JsonKeys& keys, ModelConfig& config) {
  read_hf_decoder(keys, config);
  read_hf_head(keys, config, /*default_tied=*/false);
  config.qkv_bias = true;
  read_hf_windows(keys, config, qwen_sliding_layers(keys, config));
}

}  // namespace

// Qwen2 and Qwen2.5: biases on q, k and v, and windows on the upper layers where a config turns
// them on. Source: the Qwen2 report, arXiv:2407.10671.
const Family kQwen2 = {"qwen2", "qwen2", "Qwen2ForCausalLM", read_gguf_qwen2, read_hf_qwen2};

}  // namespace thaw::model
