#include "engine/model/cuda_image.h"

#include <string_view>
#include <utility>

#include "engine/model/tensor_list.h"

namespace thaw::model {
namespace {

using ops::cuda::kChunk;
using ops::cuda::WeightRows;

constexpr int kMaxGroup = 16;  ///< query heads for one KV head

Error unsupported(const std::string& what) {
  return make_error(Errc::kUnsupported, "CUDA: " + what);
}

}  // namespace

Result<void> check_cuda_model(const ModelConfig& config, const ops::PackingOptions& packing) {
  if (packing.mode != ops::ComputeMode::kNative)
    return unsupported("weights in float32 are not supported; the kernels compute in bf16");
  if (packing.quantize != ops::Quantize::kNone && packing.quantize != ops::Quantize::kBF16)
    return unsupported("weights rounded to f16 or Q8_0 are not supported; the kernels read bf16");
  if (config.head_dim != 64 && config.head_dim != 128)
    return unsupported("head_dim is " + std::to_string(config.head_dim) +
                       "; 64 and 128 are supported");
  if (config.num_kv_heads < 1 || config.num_heads % config.num_kv_heads != 0 ||
      config.num_heads / config.num_kv_heads > kMaxGroup)
    return unsupported(std::to_string(config.num_heads) + " query heads over " +
                       std::to_string(config.num_kv_heads) +
                       " KV heads; 1 to 16 for each are supported");
  if (config.hidden_size < kChunk || config.hidden_size % kChunk != 0)
    return unsupported("hidden_size is " + std::to_string(config.hidden_size) +
                       "; multiples of 64 are supported");
  if (config.intermediate_size < kChunk || config.intermediate_size % kChunk != 0)
    return unsupported("intermediate_size is " + std::to_string(config.intermediate_size) +
                       "; multiples of 64 are supported");
  if (config.rope.dim != config.head_dim)
    return unsupported("RoPE over " + std::to_string(config.rope.dim) + " of " +
                       std::to_string(config.head_dim) +
                       " dimensions of a head is not supported; all of them are");
  if (config.mlp_bias) return unsupported("biases of gate, up and down are not supported");
  return {};
}

CudaPlace cuda_place(const std::string& tensor) {
  const std::size_t dot = tensor.rfind('.');
  if (dot == std::string::npos) return {tensor};
  const std::string layer = tensor.substr(0, dot + 1);
  const std::string_view name = std::string_view(tensor).substr(dot + 1);
  if (name == "q" || name == "k" || name == "v") return {layer + "qkv"};
  if (name == "q_bias" || name == "k_bias" || name == "v_bias") return {layer + "qkv_bias"};
  if (name == "gate") return {layer + "gate_up", WeightRows::kGate};
  if (name == "up") return {layer + "gate_up", WeightRows::kUp};
  return {tensor};
}

std::vector<CudaEntry> cuda_entries(const ModelConfig& config) {
  std::vector<CudaEntry> entries;
  for (const TensorRule& rule : tensor_list(config)) {
    std::string name = cuda_place(rule.name).entry;
    if (entries.empty() || entries.back().name != name)
      entries.push_back({std::move(name), rule.is_matrix, rule.is_matrix ? 0 : 1,
                         rule.is_matrix ? rule.cols : 0});
    (rule.is_matrix ? entries.back().rows : entries.back().cols) +=
        rule.is_matrix ? rule.rows : rule.cols;
  }
  return entries;
}

}  // namespace thaw::model
