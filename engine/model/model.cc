#include "engine/model/model.h"

#include <algorithm>
#include <limits>
#include <string>

#include "engine/base/hash.h"
#include "engine/model/decoder.h"

namespace thaw::model {
namespace {

constexpr std::size_t kMaxBlocks = std::numeric_limits<BlockId>::max();

ops::PagedKv paged_kv(const ModelConfig& config, ops::KvDType dtype, std::byte* base) {
  return {base, dtype, config.num_layers, config.num_kv_heads, config.head_dim};
}

}  // namespace

Result<void> Model::give_masks(StepHandle handle,
                               std::span<const std::span<const std::uint32_t>> /*masks*/) {
  return make_error(Errc::kUnsupported,
                    "model: step " + std::to_string(handle) + " draws without masks");
}

std::optional<DeviceDraw> DeviceDraw::of(const SamplingParams& params) {
  const bool is_greedy = params.temperature == 0.0F || params.top_k == 1;
  const bool cuts = !is_greedy && (params.top_k > 0 || params.top_p < 1.0F);
  const bool bars_stops =
      params.min_tokens > 0 && !(params.ignore_eos && params.stop_token_ids.empty());
  const bool has_penalties = params.repetition_penalty != 1.0F || params.presence_penalty != 0.0F ||
                             params.frequency_penalty != 0.0F;
  const bool bars_tokens =
      !params.logit_bias.empty() || !params.allowed_token_ids.empty() || !params.bad_words.empty();
  if (cuts || bars_stops || has_penalties || bars_tokens || params.top_logprobs >= 0)
    return std::nullopt;
  DeviceDraw draw;
  draw.temperature = is_greedy ? 0.0F : params.temperature;
  draw.min_p = params.min_p;
  draw.seed = params.seed;
  return draw;
}

Result<std::unique_ptr<Model>> make_model(ops::Device& device,
                                          const checkpoint::WeightImageView& image,
                                          std::span<std::byte> kv_memory,
                                          const ModelOptions& options) {
  Result<ModelConfig> config = ModelConfig::from_json(image.document());
  if (!config) return std::move(config).error();
  const int max_positions =
      options.max_positions == 0 ? config->max_positions : options.max_positions;
  if (max_positions < 1 || max_positions > config->max_positions) {
    return make_error(Errc::kInvalidArgument,
                      "max_positions is " + std::to_string(options.max_positions) +
                          "; the model was made for 1 to " + std::to_string(config->max_positions));
  }
  const std::size_t block_bytes = kv_block_bytes(*config, options.kv_dtype);
  const std::size_t num_blocks = block_bytes == 0 ? 0 : kv_memory.size() / block_bytes;
  if (num_blocks == 0) {
    return make_error(Errc::kInvalidArgument, "KV memory of " + std::to_string(kv_memory.size()) +
                                                  " bytes holds no block of " +
                                                  std::to_string(block_bytes) + " bytes");
  }
  return make_decoder(device, image, *config, paged_kv(*config, options.kv_dtype, kv_memory.data()),
                      static_cast<int>(std::min(num_blocks, kMaxBlocks)), max_positions);
}

std::size_t kv_block_bytes(const ModelConfig& config, ops::KvDType dtype) {
  return paged_kv(config, dtype, nullptr).block_bytes();
}

Hash128 engine_fingerprint(const checkpoint::WeightImageView& image, ops::KvDType dtype,
                           const ops::Device& device) {
  // The digest covers the weights, their packing and the configuration with its RoPE parameters.
  return hash_text("thaw-engine-1 weights=" + image.digest().to_hex() +
                   " kv_dtype=" + std::to_string(static_cast<int>(dtype)) +
                   " kv_layout=layer,kv,head,k^T|v block=" + std::to_string(kBlockSize) +
                   " kernels=" + device.kernel_set());
}

}  // namespace thaw::model
