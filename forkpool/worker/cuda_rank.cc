#include "forkpool/worker/cuda_rank.h"

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include "engine/base/device_name.h"
#include "engine/base/log.h"
#include "engine/cuda/device_info.h"
#include "engine/cuda/stream.h"
#include "engine/model/cuda/device_image.h"
#include "engine/model/cuda/shard_upload.h"

namespace thaw::forkpool::worker {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kPeerTimeout{20};  // of kernels that wait for a rank
// What a former group held is free some tenths of a second after its end.
constexpr std::chrono::seconds kMemoryWait{3};

/// The descriptor of what is imported is the one that came: an import is not exported again.
Result<SharedFd> shared_fd(const cuda::VmmAllocation& memory, const SharedFd& inherited) {
  if (inherited != nullptr) return inherited;
  auto exported = memory.export_fd();
  if (!exported) return exported.error();
  return std::make_shared<const UniqueFd>(std::move(*exported));
}

}  // namespace

CudaRank::CudaRank(const InitFrame& init, const DeviceMemory& kept,
                   const checkpoint::WeightImageView& image)
    : init_(init),
      kept_(kept),
      image_(image),
      tp_{static_cast<int>(init.tp_rank), static_cast<int>(init.tp_size)} {}

Result<void> CudaRank::load(int weights_fd) {
  const auto devices = parse_device(init_.device);
  if (!devices) return devices.error();
  if (static_cast<int>(devices->more.size()) + 1 != tp_.size) {
    return make_error(Errc::kInvalidArgument, "device " + init_.device + " for " +
                                                  std::to_string(tp_.size) +
                                                  " ranks; one GPU each is right");
  }
  const int ordinal =
      tp_.rank == 0 ? devices->ordinal : devices->more[static_cast<std::size_t>(tp_.rank) - 1];
  auto gpu = open_gpu(init_, image_, ordinal);
  if (!gpu) return gpu.error();
  gpu_ = std::move(*gpu);
  const auto started = Clock::now();
  if (auto loaded = load_weights(weights_fd); !loaded) return loaded;
  weights_ms_ = milliseconds_since(started);
  ops::cuda::Exchange::Options options;
  options.rank = tp_.rank;
  options.size = tp_.size;
  options.user_bytes = model::cuda_exchange_bytes(gpu_.config, model_options());
  options.timeout = kPeerTimeout;
  auto exchange = ops::cuda::Exchange::create(gpu_.ordinal, options);
  if (!exchange) return exchange.error();
  exchange_ = std::move(*exchange);
  adopt_kv();
  return {};
}

Result<std::uint64_t> CudaRank::room() const {
  if (kv_ != nullptr) return kv_->size() / block_bytes();
  const auto free_bytes = cuda::free_device_bytes();
  if (!free_bytes) return free_bytes.error();
  const std::size_t reserved =
      model::cuda_model_bytes(gpu_.config, model_options()) + kGpuMarginBytes;
  const std::size_t room = *free_bytes > reserved ? *free_bytes - reserved : 0;
  const std::size_t wanted =
      static_cast<std::size_t>(init_.kv_bytes) / static_cast<std::size_t>(tp_.size);
  if (room < std::max(wanted, block_bytes())) {
    return make_error(Errc::kResourceExhausted,
                      "GPU " + std::to_string(gpu_.ordinal) + ": a KV pool of " +
                          std::to_string(std::max(wanted, block_bytes()) >> 20) + " MiB beside " +
                          std::to_string(reserved >> 20) +
                          " MiB for the model's activations, where " +
                          std::to_string(*free_bytes >> 20) +
                          " MiB are free; lower --kv-bytes, --max-num-seqs or "
                          "--prefill-chunk-tokens");
  }
  return (wanted != 0 ? wanted : room) / block_bytes();
}

Result<std::unique_ptr<model::CudaModel>> CudaRank::make_model(std::uint64_t num_blocks,
                                                               std::span<const int> exchanges) {
  if (auto connected = exchange_->connect(exchanges); !connected) return connected.error();
  if (kv_ == nullptr) {
    auto kv = cuda::VmmAllocation::create(gpu_.ordinal, num_blocks * block_bytes());
    if (!kv) return make_error(kv.error().code, "KV pool: " + kv.error().message);
    kv_ = std::make_unique<cuda::VmmAllocation>(std::move(*kv));
  }
  return model::make_cuda_model(*gpu_.device, image_, weights_->span(),
                                kv_->span().subspan(0, num_blocks * block_bytes()),
                                model_options());
}

Result<DeviceMemory> CudaRank::memory() const {
  DeviceMemory memory;
  memory.kv_bytes = kv_->size();
  auto kv = shared_fd(*kv_, kv_kept_ ? kept_.kv : nullptr);
  if (!kv) return kv.error();
  memory.kv = std::move(*kv);
  memory.weights_digest = weights_digest_;
  if (weights_kept_) return memory;
  memory.weights_bytes = weights_->size();
  auto weights = shared_fd(*weights_, weights_imported_ ? kept_.weights : nullptr);
  if (!weights) return weights.error();
  memory.weights = std::move(*weights);
  return memory;
}

std::size_t CudaRank::block_bytes() const {
  return model::kv_block_bytes(model::rank_heads(gpu_.config, tp_.size), ops::KvDType::kBF16);
}

Result<void> CudaRank::load_weights(int fd) {
  const auto plan = model::plan_shard(image_, gpu_.config, tp_);
  if (!plan) return plan.error();
  if (adopt_weights(plan->total_bytes)) return {};
  if (weights_ == nullptr) {
    const auto started = Clock::now();
    auto made = cuda::VmmAllocation::create(gpu_.ordinal, plan->total_bytes);
    while (!made && made.error().code == Errc::kResourceExhausted &&
           Clock::now() - started < kMemoryWait) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      made = cuda::VmmAllocation::create(gpu_.ordinal, plan->total_bytes);
    }
    if (!made) return make_error(made.error().code, "weights: " + made.error().message);
    weights_ = std::make_unique<cuda::VmmAllocation>(std::move(*made));
  }
  const auto report = model::upload_shard(fd, *plan, weights_->span());
  if (!report) return make_error(report.error().code, "weights: " + report.error().message);
  const cuda::Stream stream;
  const auto digests = model::device_digests(shard_span(plan->total_bytes), stream);
  if (!digests) return digests.error();
  weights_digest_ = digests->summary;
  logger("worker")->info("rank={} weights uploaded mib={} GB_per_s={:.1f}", tp_.rank,
                         report->bytes >> 20, report->bytes_per_second() * 1e-9);
  return {};
}

// What the digest takes: whole units of 16 bytes.
cuda::DeviceSpan<std::byte> CudaRank::shard_span(std::size_t bytes) const {
  return weights_->span().subspan(0, bytes / 16 * 16);
}

// Whether the kept weights are here and what they were. What is damaged keeps its memory.
bool CudaRank::adopt_weights(std::size_t bytes) {
  if (kept_.weights_bytes < bytes || kept_.device != gpu_.uuid || kept_.image != image_.digest())
    return false;
  const auto started = Clock::now();
  auto imported =
      cuda::VmmAllocation::import(gpu_.ordinal, kept_.weights->get(), kept_.weights_bytes);
  if (!imported) {
    logger("worker")->warn("rank={} kept weights cannot be imported: {}", tp_.rank,
                           imported.error().message);
    return false;
  }
  weights_ = std::make_unique<cuda::VmmAllocation>(std::move(*imported));
  weights_imported_ = true;
  const cuda::Stream stream;
  const auto verified = model::verify_device_image(shard_span(bytes), kept_.weights_digest, stream);
  if (!verified) {
    logger("worker")->warn("rank={} kept weights are damaged, uploading them again: {}", tp_.rank,
                           verified.error().message);
    return false;
  }
  weights_digest_ = kept_.weights_digest;
  weights_kept_ = true;
  logger("worker")->info("rank={} weights adopted mib={} ms={:.2f}", tp_.rank, bytes >> 20,
                         milliseconds_since(started));
  return true;
}

void CudaRank::adopt_kv() {
  if (kept_.kv_bytes < block_bytes() || kept_.device != gpu_.uuid) return;
  auto imported = cuda::VmmAllocation::import(gpu_.ordinal, kept_.kv->get(), kept_.kv_bytes);
  if (!imported) {
    logger("worker")->warn("rank={} kept KV cannot be imported: {}", tp_.rank,
                           imported.error().message);
    return;
  }
  kv_ = std::make_unique<cuda::VmmAllocation>(std::move(*imported));
  kv_kept_ = true;
  logger("worker")->info("rank={} kv adopted mib={}", tp_.rank, kv_->size() >> 20);
}

model::CudaModelOptions CudaRank::model_options() const {
  model::CudaModelOptions options = worker::model_options(init_);
  options.tp = tp_;
  options.exchange = exchange_.get();
  return options;
}

}  // namespace thaw::forkpool::worker
