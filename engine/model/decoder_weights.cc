#include "engine/model/decoder_weights.h"

#include <string>

namespace thaw::model {
namespace {

LayerWeights read_layer(WeightReader& reader, const ModelConfig& config, const std::string& name) {
  const std::int64_t hidden = config.hidden_size;
  const std::int64_t ffn = config.intermediate_size;
  const std::int64_t q = std::int64_t{config.num_heads} * config.head_dim;
  const std::int64_t kv = std::int64_t{config.num_kv_heads} * config.head_dim;
  LayerWeights layer;
  layer.attention_norm = reader.vector(name + "attention_norm", hidden);
  layer.q = reader.matrix(name + "q", q, hidden);
  layer.k = reader.matrix(name + "k", kv, hidden);
  layer.v = reader.matrix(name + "v", kv, hidden);
  if (config.qkv_bias) {
    layer.q_bias = reader.vector(name + "q_bias", q);
    layer.k_bias = reader.vector(name + "k_bias", kv);
    layer.v_bias = reader.vector(name + "v_bias", kv);
  }
  if (config.qk_norm) {
    layer.q_norm = reader.vector(name + "q_norm", config.head_dim);
    layer.k_norm = reader.vector(name + "k_norm", config.head_dim);
  }
  layer.o = reader.matrix(name + "o", hidden, q);
  if (config.o_bias) layer.o_bias = reader.vector(name + "o_bias", hidden);
  layer.ffn_norm = reader.vector(name + "ffn_norm", hidden);
  layer.gate = reader.matrix(name + "gate", ffn, hidden);
  layer.up = reader.matrix(name + "up", ffn, hidden);
  layer.down = reader.matrix(name + "down", hidden, ffn);
  if (config.mlp_bias) {
    layer.gate_bias = reader.vector(name + "gate_bias", ffn);
    layer.up_bias = reader.vector(name + "up_bias", ffn);
    layer.down_bias = reader.vector(name + "down_bias", hidden);
  }
  return layer;
}

}  // namespace

DecoderWeights read_decoder_weights(WeightReader& reader, const ModelConfig& config) {
  DecoderWeights weights;
  weights.token_embedding = reader.matrix("token_embedding", config.vocab_size, config.hidden_size);
  for (int i = 0; i < config.num_layers && !reader.error(); ++i)
    weights.layers.push_back(read_layer(reader, config, "layers." + std::to_string(i) + "."));
  weights.output_norm = reader.vector("output_norm", config.hidden_size);
  weights.head = config.tied_embeddings
                     ? weights.token_embedding
                     : reader.matrix("head", config.vocab_size, config.hidden_size);
  if (config.rope_factors)
    weights.rope_factors = reader.vector("rope_factors", config.rope.dim / 2);
  return weights;
}

}  // namespace thaw::model
