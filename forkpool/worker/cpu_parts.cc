#include <string>
#include <utility>

#include "forkpool/worker/device_parts.h"

namespace thaw::forkpool::worker {
namespace {

class MappedPeer final : public PeerMemory {
 public:
  explicit MappedPeer(Mapping mapping) : mapping_(std::move(mapping)) {}
  const std::byte* base() const override { return mapping_.bytes().data(); }

 private:
  Mapping mapping_;
};

// Weights and KV are the pool's files, mapped, so that they survive as they are and nothing needs
// to be kept.
class CpuParts final : public DeviceParts {
 public:
  explicit CpuParts(const PartsRequest& request) : request_(request) {}

  Result<void> build() {
    const auto kv_dtype = parse_kv_dtype(request_.init->kv_dtype);
    if (!kv_dtype) return kv_dtype.error();
    kv_dtype_ = *kv_dtype;
    auto kv = map_inherited(request_.kv_fd, MapAccess::kReadWrite, "KV pool");
    if (!kv) return kv.error();
    kv_memory_ = std::move(*kv);
    auto device =
        ops::CpuDevice::create(static_cast<int>(request_.init->num_threads), request_.init->isa);
    if (!device) return device.error();
    device_ = std::move(*device);
    return {};
  }

  const ops::Device& device() const override { return *device_; }
  Result<std::unique_ptr<model::Model>> make_model() override {
    return model::make_model(*device_, *request_.image, kv_memory_.bytes(),
                             {kv_dtype_, static_cast<int>(request_.init->max_model_len)});
  }
  Result<std::unique_ptr<kvsnap::CopyPipeline>> make_pipeline() override {
    return kvsnap::make_cpu_copy_pipeline(device_->threads());
  }
  bool kv_survives(const model::KvView& /*kv*/) const override { return true; }
  std::vector<DeviceMemory> memory_to_keep(const model::KvView& /*kv*/) override { return {}; }
  Result<std::unique_ptr<PeerMemory>> map_peer(const DeviceMemory& memory) const override {
    if (memory.device != "cpu") {
      return make_error(Errc::kUnsupported, "memory of device " + memory.device + " on the CPU");
    }
    auto mapped = map_inherited(memory.kv->get(), MapAccess::kReadOnly, "a peer's KV pool");
    if (!mapped) return mapped.error();
    if (mapped->size_bytes() < memory.kv_bytes) {
      return make_error(Errc::kInvalidArgument,
                        "a peer's KV pool of " + std::to_string(mapped->size_bytes()) +
                            " bytes, not " + std::to_string(memory.kv_bytes));
    }
    return std::unique_ptr<PeerMemory>(std::make_unique<MappedPeer>(*std::move(mapped)));
  }
  double weights_ms() const override { return 0; }

 private:
  PartsRequest request_;
  ops::KvDType kv_dtype_ = ops::KvDType::kBF16;
  Mapping kv_memory_;
  std::unique_ptr<ops::CpuDevice> device_;
};

}  // namespace

Result<std::unique_ptr<DeviceParts>> make_cpu_parts(const PartsRequest& request) {
  auto parts = std::make_unique<CpuParts>(request);
  if (auto built = parts->build(); !built) return built.error();
  return std::unique_ptr<DeviceParts>(std::move(parts));
}

}  // namespace thaw::forkpool::worker
