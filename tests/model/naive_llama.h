#pragma once

#include <cmath>
#include <span>
#include <string>
#include <vector>

#include "engine/checkpoint/dequantize.h"
#include "engine/checkpoint/gguf.h"
#include "engine/model/config.h"

namespace thaw::model {

/// The Llama family in plain double loops over the dequantised weights of a GGUF file: slow, and
/// written without a look at the kernels.
class NaiveLlama {
 public:
  NaiveLlama(const checkpoint::GgufFile& file, const ModelConfig& config)
      : file_(file), config_(config) {}

  /// Logits of every position of one sequence.
  std::vector<std::vector<double>> forward(std::span<const TokenId> tokens) const {
    const int hidden = config_.hidden_size;
    const auto embedding = weights("token_embd.weight");
    std::vector<Row> x;
    for (const TokenId token : tokens)
      x.emplace_back(embedding.begin() + token * hidden, embedding.begin() + (token + 1) * hidden);
    for (int i = 0; i < config_.num_layers; ++i)
      layer("blk." + std::to_string(i) + ".", x);
    const auto head = config_.tied_embeddings ? embedding : weights("output.weight");
    const auto norm_weight = weights("output_norm.weight");
    for (Row& row : x)
      row = product(head, norm(row, norm_weight));
    return x;
  }

 private:
  using Row = std::vector<double>;

  Row weights(const std::string& name) const {
    const checkpoint::StoredTensor& tensor = *file_.find_tensor(name);
    std::vector<float> values(static_cast<std::size_t>(tensor.rows() * tensor.cols()));
    checkpoint::dequantize(tensor.dtype, tensor.data, values);
    return {values.begin(), values.end()};
  }

  static Row product(const Row& matrix, const Row& x) {
    Row out(matrix.size() / x.size());
    for (std::size_t r = 0; r < out.size(); ++r)
      for (std::size_t c = 0; c < x.size(); ++c)
        out[r] += matrix[r * x.size() + c] * x[c];
    return out;
  }

  Row norm(const Row& x, const Row& weight) const {
    double sum = 0;
    for (const double value : x)
      sum += value * value;
    Row out(x.size());
    for (std::size_t i = 0; i < x.size(); ++i)
      out[i] = x[i] / std::sqrt(sum / x.size() + config_.rms_norm_eps) * weight[i];
    return out;
  }

  void rotate(Row& heads, int position) const {
    const bool scaled = file_.find_tensor("rope_freqs.weight") != nullptr;
    const Row factors = scaled ? weights("rope_freqs.weight") : Row();
    for (std::size_t start = 0; start < heads.size(); start += config_.head_dim) {
      for (int i = 0; i < config_.rope.dim / 2; ++i) {
        const double angle = position * std::pow(config_.rope.theta, -2.0 * i / config_.rope.dim) /
                             (scaled ? factors[i] : 1.0);
        double& a = heads[start + 2 * i];
        double& b = heads[start + 2 * i + 1];
        const double rotated = a * std::cos(angle) - b * std::sin(angle);
        b = a * std::sin(angle) + b * std::cos(angle);
        a = rotated;
      }
    }
  }

  void layer(const std::string& name, std::vector<Row>& x) const {
    const auto w = [&](const char* part) { return weights(name + part + ".weight"); };
    const Row norm_weight = w("attn_norm"), q_weight = w("attn_q"), k_weight = w("attn_k"),
              v_weight = w("attn_v"), o_weight = w("attn_output"), ffn_norm = w("ffn_norm"),
              gate_weight = w("ffn_gate"), up_weight = w("ffn_up"), down_weight = w("ffn_down");
    std::vector<Row> keys, values;
    for (std::size_t position = 0; position < x.size(); ++position) {
      const Row in = norm(x[position], norm_weight);
      Row q = product(q_weight, in);
      keys.push_back(product(k_weight, in));
      values.push_back(product(v_weight, in));
      rotate(q, static_cast<int>(position));
      rotate(keys.back(), static_cast<int>(position));
      add(x[position], product(o_weight, attend(q, keys, values)));
      const Row hidden = norm(x[position], ffn_norm);
      Row gate = product(gate_weight, hidden);
      const Row up = product(up_weight, hidden);
      for (std::size_t i = 0; i < gate.size(); ++i)
        gate[i] = gate[i] / (1.0 + std::exp(-gate[i])) * up[i];
      add(x[position], product(down_weight, gate));
    }
  }

  Row attend(const Row& q, const std::vector<Row>& keys, const std::vector<Row>& values) const {
    const int dim = config_.head_dim;
    Row out(q.size());
    for (int head = 0; head < config_.num_heads; ++head) {
      const int kv = head / (config_.num_heads / config_.num_kv_heads) * dim;
      Row scores;
      double sum = 0;
      for (const Row& key : keys) {
        double dot = 0;
        for (int i = 0; i < dim; ++i)
          dot += q[head * dim + i] * key[kv + i];
        scores.push_back(std::exp(dot / std::sqrt(dim)));
        sum += scores.back();
      }
      for (std::size_t t = 0; t < keys.size(); ++t)
        for (int i = 0; i < dim; ++i)
          out[head * dim + i] += scores[t] / sum * values[t][kv + i];
    }
    return out;
  }

  static void add(Row& x, const Row& y) {
    for (std::size_t i = 0; i < x.size(); ++i)
      x[i] += y[i];
  }

  const checkpoint::GgufFile& file_;
  const ModelConfig& config_;
};

}  // namespace thaw::model
