#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <future>
#include <memory>
#include <string>
#include <utility>

#include "engine/base/log.h"
#include "engine/cuda/check.h"
#include "engine/cuda/device_info.h"
#include "engine/cuda/vmm.h"
#include "engine/model/cuda/device_image.h"
#include "forkpool/worker/cuda_gpu.h"
#include "forkpool/worker/device_parts.h"
#include "kvsnap/copy_pipeline_cuda.h"
#include "kvsnap/pinned_range.h"

namespace thaw::forkpool::worker {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kMostChecksumThreads = 12;

std::string mebibytes(std::size_t bytes) {
  return std::to_string(bytes >> 20) + " MiB";
}

class ImportedPeer final : public PeerMemory {
 public:
  explicit ImportedPeer(cuda::VmmAllocation allocation) : allocation_(std::move(allocation)) {}
  const std::byte* base() const override { return allocation_.data(); }

 private:
  cuda::VmmAllocation allocation_;
};

// Weights and KV in allocations whose descriptors the pool keeps: a successor imports them.
class CudaParts final : public DeviceParts {
 public:
  CudaParts(const PartsRequest& request, int ordinal) : request_(request), ordinal_(ordinal) {}
  CudaParts(const CudaParts&) = delete;
  CudaParts& operator=(const CudaParts&) = delete;
  ~CudaParts() override = default;

  Result<void> build() {
    // Meanwhile: pinning takes every page of the arena.
    if (request_.arena != nullptr)
      pinning_ = std::async(std::launch::async, [this] { return pin_arena(); });
    auto gpu = open_gpu(*request_.init, *request_.image, ordinal_);
    if (!gpu) return gpu.error();
    gpu_ = std::move(*gpu);
    const auto started = Clock::now();
    if (auto loaded = load_weights(); !loaded) return loaded;
    weights_ms_ = milliseconds_since(started);
    return make_kv();
  }

  const ops::Device& device() const override { return *gpu_.device; }

  Result<std::unique_ptr<model::Model>> make_model() override {
    auto made = model::make_cuda_model(*gpu_.device, *request_.image, weights_->span(), kv_->span(),
                                       model_options(*request_.init));
    if (!made) return made.error();
    compute_ = (*made)->stream().get();
    return std::unique_ptr<model::Model>(std::move(*made));
  }

  Result<std::unique_ptr<kvsnap::CopyPipeline>> make_pipeline() override {
    if (pinning_.valid()) {
      auto pinned = pinning_.get();
      if (!pinned) return pinned.error();
      pinned_ = std::move(*pinned);
    }
    const int threads = static_cast<int>(request_.init->num_threads);
    return kvsnap::make_cuda_copy_pipeline(
        cuda::StreamView(compute_),
        {.num_threads = std::min(std::max(threads, 1), kMostChecksumThreads), .chunks = {}});
  }

  bool kv_survives(const model::KvView& kv) const override {
    return kv_imported_ && kept().kv_layout == kv.layout && kept().block_bytes == kv.block_bytes;
  }

  std::vector<DeviceMemory> memory_to_keep(const model::KvView& kv) override {
    DeviceMemory memory;
    memory.device = gpu_.uuid;
    memory.image = request_.image->digest();
    memory.weights_digest = weights_digest_;
    memory.kv_layout = kv.layout;
    memory.block_bytes = kv.block_bytes;
    if (weights_changed_) {
      memory.weights = weights_imported_
                           ? kept().weights
                           : std::make_shared<const UniqueFd>(weights_->export_fd().value());
      memory.weights_bytes = weights_->size();
    }
    if (!kv_imported_) {
      memory.kv = std::make_shared<const UniqueFd>(kv_->export_fd().value());
      memory.kv_bytes = kv_->size();
    }
    if (!weights_changed_ && kv_imported_) return {};
    return {std::move(memory)};
  }

  Result<std::unique_ptr<PeerMemory>> map_peer(const DeviceMemory& memory) const override {
    auto imported = cuda::VmmAllocation::import(ordinal_, memory.kv->get(), memory.kv_bytes);
    if (!imported) {
      return make_error(Errc::kUnsupported, "device " + gpu_.uuid +
                                                " cannot map the KV of device " + memory.device +
                                                ": " + imported.error().message);
    }
    return std::unique_ptr<PeerMemory>(std::make_unique<ImportedPeer>(*std::move(imported)));
  }
  double weights_ms() const override { return weights_ms_; }

 private:
  /// Only while the parts are made.
  const DeviceMemory& kept() const { return request_.inherited.front(); }

  Result<kvsnap::PinnedRange> pin_arena() const try {
    cuda::check(cudaSetDevice(ordinal_), "device of the arena");
    const auto started = Clock::now();
    auto pinned = kvsnap::PinnedRange::pin(request_.arena->memory());
    if (pinned) {
      logger("worker")->info("arena pinned mib={} ms={:.1f}", request_.arena->size_bytes() >> 20,
                             milliseconds_since(started));
    }
    return pinned;
  } catch (const Exception& failure) {
    return failure.error();
  }

  // The image's bytes, rounded up to what the digest takes.
  cuda::DeviceSpan<std::byte> image_span() const {
    return weights_->span().subspan(0, (request_.image_bytes + 15) / 16 * 16);
  }

  Result<void> load_weights() {
    if (adopt_weights()) return {};
    if (weights_ == nullptr) {
      auto made = cuda::VmmAllocation::create(ordinal_, request_.image_bytes + 16);
      if (!made) return make_error(made.error().code, "weights: " + made.error().message);
      weights_ = std::make_unique<cuda::VmmAllocation>(std::move(*made));
    }
    const auto whole = weights_->span();
    const auto report =
        model::upload_image(request_.weights_fd, whole.subspan(0, request_.image_bytes));
    if (!report) return make_error(report.error().code, "weights: " + report.error().message);
    const cuda::Stream stream;
    // So that the digest covers nothing undefined.
    cuda::check(cudaMemsetAsync(whole.data() + request_.image_bytes, 0,
                                image_span().size() - request_.image_bytes, stream.view().get()),
                "end of the image");
    auto digests = model::device_digests(image_span(), stream);
    if (!digests) return digests.error();
    weights_digest_ = digests->summary;
    weights_changed_ = !weights_imported_ || weights_digest_ != kept().weights_digest;
    logger("worker")->info("weights uploaded mib={} GB_per_s={:.1f}", request_.image_bytes >> 20,
                           report->bytes_per_second() * 1e-9);
    return {};
  }

  // Whether the kept weights are here and what they were. What is damaged keeps its memory.
  bool adopt_weights() {
    if (kept().weights_bytes < request_.image_bytes + 16 || kept().device != gpu_.uuid ||
        kept().image != request_.image->digest()) {
      return false;
    }
    const auto started = Clock::now();
    auto imported =
        cuda::VmmAllocation::import(ordinal_, kept().weights->get(), kept().weights_bytes);
    if (!imported) {
      logger("worker")->warn("kept weights cannot be imported: {}", imported.error().message);
      return false;
    }
    weights_ = std::make_unique<cuda::VmmAllocation>(std::move(*imported));
    weights_imported_ = true;
    const double import_ms = milliseconds_since(started);
    const cuda::Stream stream;
    const auto verified = model::verify_device_image(image_span(), kept().weights_digest, stream);
    if (!verified) {
      logger("worker")->warn("kept weights are damaged, uploading them again: {}",
                             verified.error().message);
      return false;
    }
    weights_digest_ = kept().weights_digest;
    logger("worker")->info("weights adopted mib={} import_ms={:.2f} verify_ms={:.2f}",
                           request_.image_bytes >> 20, import_ms,
                           milliseconds_since(started) - import_ms);
    return true;
  }

  Result<void> make_kv() {
    if (kept().kv_bytes > 0 && kept().device == gpu_.uuid) {
      auto imported = cuda::VmmAllocation::import(ordinal_, kept().kv->get(), kept().kv_bytes);
      if (imported) {
        kv_ = std::make_unique<cuda::VmmAllocation>(std::move(*imported));
        kv_imported_ = true;
        logger("worker")->info("kv adopted mib={}", kv_->size() >> 20);
        return {};
      }
      logger("worker")->warn("kept KV pool cannot be imported: {}", imported.error().message);
    }
    const auto free_bytes = cuda::free_device_bytes();
    if (!free_bytes) return free_bytes.error();
    const std::size_t model_bytes =
        model::cuda_model_bytes(gpu_.config, model_options(*request_.init));
    const std::size_t reserved = model_bytes + kGpuMarginBytes;
    const std::size_t block = model::kv_block_bytes(gpu_.config, ops::KvDType::kBF16);
    const std::size_t room = *free_bytes > reserved ? *free_bytes - reserved : 0;
    const std::size_t wanted = request_.init->kv_bytes;
    if (room < std::max(wanted, block)) {
      return make_error(
          Errc::kResourceExhausted,
          "a KV pool of " + (wanted == 0 ? "at least one block" : mebibytes(wanted)) + " beside " +
              mebibytes(reserved) + " for the model's activations, where " +
              mebibytes(*free_bytes) + " of the GPU's " +
              mebibytes(gpu_.device->info().total_bytes) +
              " are free; lower --kv-bytes, --max-num-seqs or --prefill-chunk-tokens");
    }
    const std::size_t granularity = cuda::VmmAllocation::granularity(ordinal_).value();
    const std::size_t bytes = wanted != 0 ? wanted : room / granularity * granularity;
    auto made = cuda::VmmAllocation::create(ordinal_, bytes);
    if (!made) return make_error(made.error().code, "KV pool: " + made.error().message);
    kv_ = std::make_unique<cuda::VmmAllocation>(std::move(*made));
    logger("worker")->info("kv mib={} of free_mib={} model_mib={} blocks={}", kv_->size() >> 20,
                           *free_bytes >> 20, model_bytes >> 20, kv_->size() / block);
    return {};
  }

  const PartsRequest request_;
  const int ordinal_;
  CudaGpu gpu_;
  kvsnap::PinnedRange pinned_;
  std::future<Result<kvsnap::PinnedRange>> pinning_;
  std::unique_ptr<cuda::VmmAllocation> weights_;
  std::unique_ptr<cuda::VmmAllocation> kv_;
  bool weights_imported_ = false;
  bool weights_changed_ = false;  ///< the pool has not heard of them as they are
  bool kv_imported_ = false;
  Hash128 weights_digest_;
  double weights_ms_ = 0;
  cudaStream_t compute_ = nullptr;  ///< the model's
};

}  // namespace

Result<std::unique_ptr<DeviceParts>> make_cuda_parts(const PartsRequest& request, int ordinal) try {
  auto parts = std::make_unique<CudaParts>(request, ordinal);
  if (auto built = parts->build(); !built) return built.error();
  return std::unique_ptr<DeviceParts>(std::move(parts));
} catch (const Exception& failure) {
  return failure.error();
}

}  // namespace thaw::forkpool::worker
