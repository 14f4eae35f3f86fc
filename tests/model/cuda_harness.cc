#include "tests/model/cuda_harness.h"

#include <algorithm>
#include <stdexcept>

#include "engine/cuda/check.h"
#include "engine/model/cuda/device_image.h"
#include "engine/model/load.h"

namespace thaw::model {

CudaTestWeights::CudaTestWeights(const ModelSource& source)
    : device_(ops::CudaDevice::create(0).value()), config_(source.config) {
  ThreadPool threads(2);
  const LoadedImage image =
      build_image(source, {.device = ops::DeviceKind::kCuda}, threads).value();
  memory_ = map_fd(image.fd.get(), image.size_bytes, MapAccess::kReadOnly).value();
  image_ = std::make_unique<checkpoint::WeightImageView>(
      checkpoint::WeightImageView::open(memory_.bytes()).value());
  weights_ = std::make_unique<cuda::VmmAllocation>(
      cuda::VmmAllocation::create(0, image.size_bytes).value());
  upload_image(image.fd.get(), weights_->span().subspan(0, image.size_bytes)).value();
}

CudaTestWeights::CudaTestWeights(const ModelConfig& config, std::uint32_t seed, float scale,
                                 int device, TensorParallel tp)
    : device_(ops::CudaDevice::create(device).value()), config_(config) {
  const cuda::Stream stream;
  RandomImage image = make_random_image(config, seed, scale, device, stream).value();
  memory_ = std::move(image.table);
  image_ = std::move(image.view);
  if (tp.size > 1) {
    const ShardPlan plan = plan_shard(*image_, config, tp).value();
    auto part = cuda::VmmAllocation::create(device, plan.total_bytes).value();
    for (const ShardCopy& copy : plan.copies)
      cuda::check(cudaMemcpyAsync(part.data() + copy.to, image.weights.data() + copy.from,
                                  copy.bytes, cudaMemcpyDeviceToDevice, stream.view().get()));
    stream.synchronize();
    image.weights = std::move(part);
  }
  weights_ = std::make_unique<cuda::VmmAllocation>(std::move(image.weights));
}

CudaHarness::CudaHarness(const CudaTestWeights& weights, const CudaModelOptions& options,
                         int num_blocks)
    : kv_(kv_block_bytes(rank_heads(weights.config(), options.tp.size), ops::KvDType::kBF16) *
              static_cast<std::size_t>(num_blocks),
          stream_),
      blocks_left_(num_blocks) {
  // Whatever a kernel reads beyond what was written must not matter.
  cuda::check(cudaMemsetAsync(kv_.data(), 0xff, kv_.size(), stream_.view().get()));
  stream_.synchronize();
  model_ =
      make_cuda_model(weights.device(), weights.image(), weights.weights(), kv_, options).value();
}

std::vector<BlockId> CudaHarness::take_blocks(int count) {
  if (count > blocks_left_) throw std::runtime_error("harness: out of blocks");
  std::vector<BlockId> blocks;
  for (int i = 0; i < count; ++i)
    blocks.push_back(--blocks_left_);
  return blocks;
}

std::vector<BlockId> CudaHarness::take_table(int num_tokens) {
  return take_blocks((num_tokens + kBlockSize - 1) / kBlockSize);
}

Logits CudaHarness::step(const Batch& batch) {
  const StepHandle handle = model_->launch(batch).value();
  const StepOutput output = model_->collect(handle).value();
  Logits rows;
  for (int i = 0; i < output.num_rows; ++i)
    rows.emplace_back(output.row(i).begin(), output.row(i).end());
  return rows;
}

LogitsAt CudaHarness::run(std::span<const TokenId> tokens, const std::vector<BlockId>& table,
                          int first, int count, int chunk, std::span<const int> wanted) {
  LogitsAt found;
  for (int start = first; start < first + count;) {
    const int size = std::min(chunk, first + count - start);
    std::vector<int> rows;
    for (const int position : wanted)
      if (position >= start && position < start + size) rows.push_back(position - start);
    Logits logits =
        step({{{tokens.subspan(static_cast<std::size_t>(start), static_cast<std::size_t>(size)),
                start, table, rows}}});
    for (std::size_t i = 0; i < rows.size(); ++i)
      found[start + rows[i]] = std::move(logits[i]);
    start += size;
  }
  return found;
}

ModelConfig tiny_cuda_config(int head_dim) {
  ModelConfig config = smollm2_135m_config();
  config.num_layers = 3;
  config.layers.resize(3);
  config.hidden_size = 256;
  config.intermediate_size = 512;
  config.num_heads = 6;
  config.num_kv_heads = 2;
  config.head_dim = config.rope.dim = head_dim;
  config.vocab_size = 1003;  // neither even nor a multiple of 16
  config.max_positions = 4096;
  return config;
}

}  // namespace thaw::model
