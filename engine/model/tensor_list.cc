#include "engine/model/tensor_list.h"

#include <utility>

namespace thaw::model {
namespace {

/// The tensors of one layer, named as `layers.3.q`, `blk.3.attn_q.weight` and
/// `model.layers.3.self_attn.q_proj.weight`.
class LayerList {
 public:
  LayerList(int layer, std::vector<TensorRule>& rules)
      : layer_(std::to_string(layer)), rules_(rules) {}

  void matrix(const char* name, const char* gguf, const char* hf, std::int64_t rows,
              std::int64_t cols) {
    add(name, gguf, hf, ".weight", true, rows, cols);
  }
  void norm(const char* name, const char* gguf, const char* hf, std::int64_t size) {
    add(name, gguf, hf, ".weight", false, 1, size);
  }
  void bias(const char* name, const char* gguf, const char* hf, std::int64_t size) {
    add(name, gguf, hf, ".bias", false, 1, size);
  }

 private:
  void add(const char* name, const char* gguf, const char* hf, const char* suffix, bool is_matrix,
           std::int64_t rows, std::int64_t cols) {
    rules_.push_back({"layers." + layer_ + "." + name, "blk." + layer_ + "." + gguf + suffix,
                      "model.layers." + layer_ + "." + hf + suffix, is_matrix, rows, cols});
  }

  std::string layer_;
  std::vector<TensorRule>& rules_;
};

void add_layer(const ModelConfig& config, int index, std::vector<TensorRule>& rules) {
  const std::int64_t hidden = config.hidden_size;
  const std::int64_t ffn = config.intermediate_size;
  const std::int64_t q = std::int64_t{config.num_heads} * config.head_dim;
  const std::int64_t kv = std::int64_t{config.num_kv_heads} * config.head_dim;
  LayerList layer(index, rules);
  layer.norm("attention_norm", "attn_norm", "input_layernorm", hidden);
  layer.matrix("q", "attn_q", "self_attn.q_proj", q, hidden);
  layer.matrix("k", "attn_k", "self_attn.k_proj", kv, hidden);
  layer.matrix("v", "attn_v", "self_attn.v_proj", kv, hidden);
  if (config.qkv_bias) {
    layer.bias("q_bias", "attn_q", "self_attn.q_proj", q);
    layer.bias("k_bias", "attn_k", "self_attn.k_proj", kv);
    layer.bias("v_bias", "attn_v", "self_attn.v_proj", kv);
  }
  if (config.qk_norm) {
    layer.norm("q_norm", "attn_q_norm", "self_attn.q_norm", config.head_dim);
    layer.norm("k_norm", "attn_k_norm", "self_attn.k_norm", config.head_dim);
  }
  layer.matrix("o", "attn_output", "self_attn.o_proj", hidden, q);
  if (config.o_bias) layer.bias("o_bias", "attn_output", "self_attn.o_proj", hidden);
  layer.norm("ffn_norm", "ffn_norm", "post_attention_layernorm", hidden);
  layer.matrix("gate", "ffn_gate", "mlp.gate_proj", ffn, hidden);
  layer.matrix("up", "ffn_up", "mlp.up_proj", ffn, hidden);
  layer.matrix("down", "ffn_down", "mlp.down_proj", hidden, ffn);
  if (config.mlp_bias) {
    layer.bias("gate_bias", "ffn_gate", "mlp.gate_proj", ffn);
    layer.bias("up_bias", "ffn_up", "mlp.up_proj", ffn);
    layer.bias("down_bias", "ffn_down", "mlp.down_proj", hidden);
  }
}

}  // namespace

std::vector<TensorRule> tensor_list(const ModelConfig& config) {
  const std::int64_t vocab = config.vocab_size;
  const std::int64_t hidden = config.hidden_size;
  std::vector<TensorRule> rules;
  rules.push_back(
      {"token_embedding", "token_embd.weight", "model.embed_tokens.weight", true, vocab, hidden});
  for (int i = 0; i < config.num_layers; ++i)
    add_layer(config, i, rules);
  rules.push_back({"output_norm", "output_norm.weight", "model.norm.weight", false, 1, hidden});
  if (!config.tied_embeddings)
    rules.push_back({"head", "output.weight", "lm_head.weight", true, vocab, hidden});
  if (config.rope_factors)
    rules.push_back({"rope_factors", "rope_freqs.weight", "", false, 1, config.rope.dim / 2});
  return rules;
}

bool is_redundant(const std::string& hf_name, const ModelConfig& config) {
  return hf_name.ends_with(".rotary_emb.inv_freq") ||
         (hf_name == "lm_head.weight" && config.tied_embeddings);
}

}  // namespace thaw::model
