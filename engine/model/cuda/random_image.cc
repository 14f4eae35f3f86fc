#include "engine/model/cuda/random_image.h"

#include <string>
#include <utility>
#include <vector>

#include "engine/base/file.h"
#include "engine/base/hash.h"
#include "engine/model/cuda/random_fill.h"
#include "engine/model/cuda_image.h"
#include "engine/ops/packed_weight.h"

namespace thaw::model {
namespace {

constexpr float kNormSpread = 0.03F;

bool is_norm(const std::string& name) {
  return name.ends_with("norm");
}

void fill(const checkpoint::WeightEntry& entry, std::byte* to, std::uint32_t seed, float scale,
          cuda::StreamView stream) {
  if (entry.packing == static_cast<std::uint32_t>(ops::Packing::kTiledBF16)) {
    fill_tiles(to, entry.rows, entry.cols, seed, scale, stream);
  } else if (is_norm(entry.name) || entry.name == "rope_factors") {
    fill_vector(reinterpret_cast<float*>(to), entry.cols, seed, kNormSpread, 1.0F, stream);
  } else {
    fill_vector(reinterpret_cast<float*>(to), entry.cols, seed, scale, 0.0F, stream);
  }
}

ModelConfig llama_config() {
  ModelConfig config;
  config.family = "llama";
  config.rope.half_split = true;
  config.eos_token_ids = {0};
  return config;
}

}  // namespace

Result<RandomImage> make_random_image(const ModelConfig& config, std::uint32_t seed, float scale,
                                      int device, cuda::StreamView stream) try {
  if (auto supported = check_cuda_model(config, {}); !supported) return supported.error();
  checkpoint::WeightImagePlanner planner;
  for (const CudaEntry& entry : cuda_entries(config)) {
    const ops::Packing packing =
        entry.is_matrix ? ops::Packing::kTiledBF16 : ops::Packing::kVectorF32;
    planner.add(entry.name, static_cast<std::uint32_t>(packing), entry.rows, entry.cols,
                ops::packed_bytes(packing, entry.rows, entry.cols));
  }
  planner.finish(config.to_json(), hash_text("random weights, seed " + std::to_string(seed) +
                                             ", scale " + std::to_string(scale)));
  const std::string header = planner.header();
  const auto size = static_cast<std::size_t>(planner.total_bytes());
  auto memory = create_memfd("thaw-random-weights", size);
  if (!memory) return std::move(memory).error();
  const auto bytes = std::as_bytes(std::span(header.data(), header.size()));
  if (auto written = write_at(memory->get(), bytes, 0); !written) return written.error();
  auto table = map_fd(memory->get(), size, MapAccess::kReadOnly);
  if (!table) return std::move(table).error();
  auto view = checkpoint::WeightImageView::open(table->bytes());
  if (!view) return std::move(view).error();
  auto weights = cuda::VmmAllocation::create(device, size);
  if (!weights) return std::move(weights).error();
  RandomImage image{*std::move(table),
                    std::make_unique<checkpoint::WeightImageView>(*std::move(view)),
                    *std::move(weights)};
  std::uint32_t next = seed * 4096;
  for (const checkpoint::WeightEntry& entry : image.view->entries())
    fill(entry, image.weights.data() + entry.offset, next++, scale, stream);
  stream.synchronize();
  return image;
} catch (const Exception& failure) {
  return failure.error();
}

ModelConfig llama_8b_config() {
  ModelConfig config = llama_config();
  config.num_layers = 32;
  config.hidden_size = 4096;
  config.intermediate_size = 14336;
  config.num_heads = 32;
  config.num_kv_heads = 8;
  config.head_dim = 128;
  config.vocab_size = 128256;
  config.max_positions = 131072;
  config.rope.theta = 500000.0;
  config.rope.dim = config.head_dim;
  config.rope.scaling = RopeScaling::kLlama3;
  config.rope.factor = 8.0;
  config.rope.original_positions = 8192;
  config.layers.resize(32);
  return config;
}

ModelConfig smollm2_135m_config() {
  ModelConfig config = llama_config();
  config.num_layers = 30;
  config.hidden_size = 576;
  config.intermediate_size = 1536;
  config.num_heads = 9;
  config.num_kv_heads = 3;
  config.head_dim = 64;
  config.vocab_size = 49152;
  config.max_positions = 8192;
  config.tied_embeddings = true;
  config.rope.theta = 100000.0;
  config.rope.dim = config.head_dim;
  config.layers.resize(30);
  return config;
}

}  // namespace thaw::model
