#include "engine/model/cuda/cuda_weights.h"

#include <optional>
#include <string>

#include "engine/ops/packed_weight.h"

namespace thaw::model {
namespace {

using ops::Packing;
using ops::cuda::TiledWeight;

/// Turns entries into addresses. The first error sticks.
class DeviceReader {
 public:
  DeviceReader(const ShardPlan& shard, cuda::DeviceSpan<const std::byte> weights)
      : shard_(shard), weights_(weights) {}

  TiledWeight matrix(const std::string& name, int rows, int cols) {
    const std::byte* data = find(name, rows, cols, Packing::kTiledBF16);
    return {reinterpret_cast<const ops::cuda::Bf16*>(data), rows, cols};
  }
  const float* vector(const std::string& name, int size) {
    return reinterpret_cast<const float*>(find(name, 1, size, Packing::kVectorF32));
  }
  const std::optional<Error>& error() const { return error_; }

 private:
  const std::byte* find(const std::string& name, int rows, int cols, Packing packing) {
    if (error_) return nullptr;
    const checkpoint::WeightEntry* entry = shard_.find(name);
    if (entry == nullptr) return fail("tensor " + name + " is missing");
    if (entry->rows != rows || entry->cols != cols) {
      return fail("tensor " + name + " is " + std::to_string(entry->rows) + " x " +
                  std::to_string(entry->cols) + ", not " + std::to_string(rows) + " x " +
                  std::to_string(cols));
    }
    if (entry->packing != static_cast<std::uint32_t>(packing) ||
        entry->size_bytes != ops::packed_bytes(packing, rows, cols)) {
      return fail("tensor " + name + " has packing " + std::to_string(entry->packing) + " and " +
                  std::to_string(entry->size_bytes) + " bytes; it is not packed for CUDA");
    }
    if (entry->offset > weights_.size() || entry->size_bytes > weights_.size() - entry->offset) {
      return fail("tensor " + name + " lies behind the " + std::to_string(weights_.size()) +
                  " bytes on the device");
    }
    return weights_.data() + entry->offset;
  }
  const std::byte* fail(const std::string& what) {
    error_ = make_error(Errc::kDataLoss, "weight image: " + what);
    return nullptr;
  }

  const ShardPlan& shard_;
  cuda::DeviceSpan<const std::byte> weights_;
  std::optional<Error> error_;
};

/// Outputs of each matrix that a rank has.
struct OwnRows {
  OwnRows(const ModelConfig& config, TensorParallel tp) {
    const ShardBounds bounds(config, tp.size);
    const auto own = [&](const std::vector<int>& of) {
      return of[static_cast<std::size_t>(tp.rank) + 1] - of[static_cast<std::size_t>(tp.rank)];
    };
    qkv = (own(bounds.heads) + 2 * own(bounds.kv_heads)) * config.head_dim;
    hidden = own(bounds.hidden);
    intermediate = own(bounds.intermediate);
    vocabulary = own(bounds.vocabulary);
  }
  int qkv, hidden, intermediate, vocabulary;
};

CudaLayerWeights read_layer(DeviceReader& reader, const ModelConfig& config, const OwnRows& own,
                            const std::string& name) {
  const int hidden = config.hidden_size;
  const int q = config.num_heads * config.head_dim;
  CudaLayerWeights layer;
  layer.attention_norm = reader.vector(name + "attention_norm", hidden);
  layer.qkv = reader.matrix(name + "qkv", own.qkv, hidden);
  if (config.qkv_bias) layer.qkv_bias = reader.vector(name + "qkv_bias", own.qkv);
  if (config.qk_norm) {
    layer.q_norm = reader.vector(name + "q_norm", config.head_dim);
    layer.k_norm = reader.vector(name + "k_norm", config.head_dim);
  }
  layer.o = reader.matrix(name + "o", own.hidden, q);
  if (config.o_bias) layer.o_bias = reader.vector(name + "o_bias", own.hidden);
  layer.ffn_norm = reader.vector(name + "ffn_norm", hidden);
  layer.gate_up = reader.matrix(name + "gate_up", 2 * own.intermediate, hidden);
  layer.down = reader.matrix(name + "down", own.hidden, config.intermediate_size);
  return layer;
}

}  // namespace

Result<CudaWeights> read_cuda_weights(const ShardPlan& shard,
                                      cuda::DeviceSpan<const std::byte> weights,
                                      const ModelConfig& config, TensorParallel tp) {
  DeviceReader reader(shard, weights);
  const OwnRows own(config, tp);
  CudaWeights read;
  read.token_embedding = reader.matrix("token_embedding", config.vocab_size, config.hidden_size);
  for (int i = 0; i < config.num_layers && !reader.error(); ++i)
    read.layers.push_back(read_layer(reader, config, own, "layers." + std::to_string(i) + "."));
  read.output_norm = reader.vector("output_norm", config.hidden_size);
  read.head = config.tied_embeddings && tp.size == 1
                  ? read.token_embedding
                  : reader.matrix("head", own.vocabulary, config.hidden_size);
  if (config.rope_factors) read.rope_factors = reader.vector("rope_factors", config.rope.dim / 2);
  if (const auto& error = reader.error()) return *error;
  return read;
}

}  // namespace thaw::model
