#pragma once

#include <span>
#include <vector>

#include "engine/model/config.h"
#include "engine/model/weight_reader.h"
#include "engine/ops/packed_weight.h"

namespace thaw::model {

/// Weights of one layer, views into the image. A span is empty where the model lacks the feature.
struct LayerWeights {
  std::span<const float> attention_norm;  // [hidden]
  ops::WeightView q;  // [num_heads * head_dim, hidden]
  ops::WeightView k;  // [num_kv_heads * head_dim, hidden]
  ops::WeightView v;  // [num_kv_heads * head_dim, hidden]
  std::span<const float> q_bias;  // [num_heads * head_dim]
  std::span<const float> k_bias;  // [num_kv_heads * head_dim]
  std::span<const float> v_bias;  // [num_kv_heads * head_dim]
  std::span<const float> q_norm;  // [head_dim]
  std::span<const float> k_norm;  // [head_dim]
  ops::WeightView o;  // [hidden, num_heads * head_dim]
  std::span<const float> o_bias;  // [hidden]
  std::span<const float> ffn_norm;  // [hidden]
  ops::WeightView gate;  // [intermediate, hidden]
  ops::WeightView up;  // [intermediate, hidden]
  ops::WeightView down;  // [hidden, intermediate]
  std::span<const float> gate_bias;  // [intermediate]
  std::span<const float> up_bias;  // [intermediate]
  std::span<const float> down_bias;  // [hidden]
};

struct DecoderWeights {
  ops::WeightView token_embedding;  // [vocab, hidden]
  std::vector<LayerWeights> layers;
  std::span<const float> output_norm;  // [hidden]
  ops::WeightView head;  // [vocab, hidden]; the embedding's where tied
  std::span<const float> rope_factors;  // [rope.dim / 2]
};

/// Takes the weights that tensor_list(config) names out of an image. The first error sticks to the
/// reader.
DecoderWeights read_decoder_weights(WeightReader& reader, const ModelConfig& config);

}  // namespace thaw::model
