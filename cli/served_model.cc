#include "cli/served_model.h"

#include <algorithm>
#include <map>
#include <string>

#include "engine/checkpoint/dtype.h"
#include "engine/model/tensor_list.h"

namespace thaw::cli {
namespace {

// The ranges that requests have (docs/http.md).
constexpr float kMaxTemperature = 2.0F;
constexpr float kMinPenalty = 0.01F;
constexpr float kMaxPenalty = 10.0F;

template <typename T>
void take(const std::optional<T>& proposed, T least, T most, T& value) {
  if (proposed && *proposed >= least && *proposed <= most) value = *proposed;
}

}  // namespace

SamplingParams default_sampling(const model::GenerationDefaults& generation) {
  SamplingParams sampling;
  take(generation.temperature, 0.0F, kMaxTemperature, sampling.temperature);
  take(generation.top_p, 1e-6F, 1.0F, sampling.top_p);
  take(generation.top_k, 0, 1 << 30, sampling.top_k);
  take(generation.min_p, 0.0F, 1.0F, sampling.min_p);
  take(generation.repetition_penalty, kMinPenalty, kMaxPenalty, sampling.repetition_penalty);
  return sampling;
}

std::uint64_t num_parameters(const model::ModelSource& source) {
  std::uint64_t count = 0;
  for (const model::TensorRule& rule : model::tensor_list(source.config))
    if (rule.name != "rope_factors") count += static_cast<std::uint64_t>(rule.rows * rule.cols);
  return count;
}

checkpoint::DType main_dtype(const checkpoint::TensorSource& tensors) {
  std::map<checkpoint::DType, std::size_t> bytes;
  for (const checkpoint::StoredTensor& tensor : tensors.tensors())
    bytes[tensor.dtype] += tensor.data.size();
  const auto most =
      std::ranges::max_element(bytes, {}, [](const auto& item) { return item.second; });
  return most == bytes.end() ? checkpoint::DType::kF32 : most->first;
}

coalescer::ModelDescription describe_model(const model::ModelSource& source,
                                           const ops::PackingOptions& packing,
                                           bool use_generation) {
  const checkpoint::DType dtype = main_dtype(*source.tensors);
  coalescer::ModelDescription description;
  description.family = source.config.family;
  description.num_parameters = num_parameters(source);
  description.dtype = checkpoint::dtype_name(dtype);
  const bool is_float = checkpoint::dtype_block_elements(dtype) == 1;
  if (packing.mode == ops::ComputeMode::kNative) {
    if (!is_float) description.quantization = description.dtype;
    if (is_float && packing.quantize == ops::Quantize::kQ8_0) description.quantization = "Q8_0";
  }
  description.context_length = static_cast<std::uint32_t>(source.config.max_positions);
  if (use_generation) description.default_sampling = default_sampling(source.generation);
  return description;
}

}  // namespace thaw::cli
