#include "forkpool/worker/boot.h"

#include <chrono>
#include <cstddef>
#include <utility>
#include <vector>

#include "engine/base/draw.h"
#include "engine/base/hash.h"
#include "engine/base/log.h"

namespace thaw::forkpool::worker {
namespace {

Result<ops::KvDType> parse_kv_dtype(const std::string& name) {
  if (name == "bf16") return ops::KvDType::kBF16;
  if (name == "f16") return ops::KvDType::kF16;
  if (name == "f32") return ops::KvDType::kF32;
  return make_error(Errc::kInvalidArgument, "KV dtype '" + name + "'; use bf16, f16 or f32");
}

// Stands between scheduler and model. Blocks that were evicted while a step was planned are about
// to be overwritten by it: the pool hears of that first, or the step does not run.
class AnnouncingModel final : public model::Model {
 public:
  AnnouncingModel(std::unique_ptr<model::Model> model, Outbox& outbox)
      : model_(std::move(model)), outbox_(&outbox) {}

  const model::ModelConfig& config() const override { return model_->config(); }
  const model::KvView& kv() const override { return model_->kv(); }
  int max_in_flight() const override { return model_->max_in_flight(); }
  bool can_draw(const SamplingParams& params) const override { return model_->can_draw(params); }
  Result<model::StepHandle> launch(const model::Batch& batch) override {
    if (auto flushed = outbox_->flush_evictions(); !flushed) return flushed.error();
    return model_->launch(batch);
  }
  Result<model::StepOutput> collect(model::StepHandle handle) override {
    return model_->collect(handle);
  }
  Result<void> copy_block(BlockId from, BlockId to) override {
    if (auto flushed = outbox_->flush_evictions(); !flushed) return flushed;
    return model_->copy_block(from, to);
  }

 private:
  std::unique_ptr<model::Model> model_;
  Outbox* outbox_;
};

Result<Mapping> map_inherited(int fd, MapAccess access, const std::string& what) {
  const auto size = fd_size_bytes(fd);
  if (!size) return make_error(size.error().code, what + ": " + size.error().message);
  // Where the pool has joined its pages into huge ones, this maps them as such.
  auto mapping = kvsnap::map_on_huge_boundary(fd, *size, access);
  if (!mapping) return make_error(mapping.error().code, what + ": " + mapping.error().message);
  return mapping;
}

}  // namespace

Result<std::unique_ptr<Engine>> Engine::boot(const WorkerFds& fds, const InitFrame& init,
                                             const AdoptFrame& adopt, Outbox& outbox) {
  std::unique_ptr<Engine> engine(new Engine);
  if (auto mapped = engine->map_memory(fds); !mapped) return mapped.error();
  if (auto built = engine->build_model(init); !built) return built.error();
  engine->build_scheduler(init, outbox);
  if (auto adopted = engine->adopt_blocks(adopt); !adopted) return adopted.error();
  engine->build_snapshots(init, outbox);
  return engine;
}

Result<void> Engine::map_memory(const WorkerFds& fds) {
  // Owned from here on; mappings stay valid without their descriptors.
  const UniqueFd weights_fd(fds.weights);
  const UniqueFd kv_fd(fds.kv_pool);
  const UniqueFd arena_fd(fds.arena);
  const auto started = std::chrono::steady_clock::now();
  auto weights = map_inherited(weights_fd.get(), MapAccess::kReadOnly, "weights");
  if (!weights) return weights.error();
  weights_ = std::move(*weights);
  auto image = checkpoint::WeightImageView::open(weights_.bytes());
  if (!image) return image.error();
  image_ = std::move(*image);
  const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - started;
  weights_ms_ = took.count();
  auto kv = map_inherited(kv_fd.get(), MapAccess::kReadWrite, "KV pool");
  if (!kv) return kv.error();
  kv_memory_ = std::move(*kv);
  const auto arena_bytes = fd_size_bytes(arena_fd.get());
  if (!arena_bytes || *arena_bytes == 0) return {};
  auto arena = kvsnap::ArenaView::map(arena_fd.get());
  if (!arena) return arena.error();
  arena_ = std::move(*arena);
  return {};
}

Result<void> Engine::build_model(const InitFrame& init) {
  const auto kv_dtype = parse_kv_dtype(init.kv_dtype);
  if (!kv_dtype) return kv_dtype.error();
  auto device = ops::CpuDevice::create(static_cast<int>(init.num_threads), init.isa);
  if (!device) return device.error();
  device_ = std::move(*device);
  const model::ModelOptions options{*kv_dtype, static_cast<int>(init.max_model_len)};
  auto model = model::make_model(*device_, image_, kv_memory_.bytes(), options);
  if (!model) return model.error();
  model_ = std::move(*model);

  const model::KvView& kv = model_->kv();
  ready_.kernel_set = device_->kernel_set();
  ready_.engine_fingerprint = model::engine_fingerprint(image_, *kv_dtype, *device_);
  ready_.system_fingerprint = "thaw-" THAW_VERSION "-" + ready_.kernel_set + "-" + kDrawRule;
  ready_.kv_layout = kv.layout;
  ready_.block_bytes = kv.block_bytes;
  ready_.num_blocks = kv.num_blocks;
  ready_.max_model_len = init.max_model_len != 0
                             ? init.max_model_len
                             : static_cast<std::uint32_t>(model_->config().max_positions);
  return {};
}

void Engine::build_scheduler(const InitFrame& init, Outbox& outbox) {
  model_ = std::make_unique<AnnouncingModel>(std::move(model_), outbox);
  pool_ = std::make_unique<kv::BlockPool>(ready_.num_blocks);
  kv::RadixIndex::Listener listener;
  listener.on_publish = [&outbox](const kv::RadixIndex::Published& block) {
    outbox.publish(block);
  };
  listener.on_evict = [&outbox](const Hash128& hash, BlockId) { outbox.evict(hash); };
  index_ = std::make_unique<kv::RadixIndex>(*pool_, std::move(listener));
  scheduler::SchedulerOptions options;
  options.max_num_seqs = init.max_num_seqs;
  options.max_waiting = init.max_waiting;
  options.prefill_chunk_tokens = init.prefill_chunk_tokens;
  options.max_model_len = ready_.max_model_len;
  options.num_blocks = ready_.num_blocks;
  options.engine_fingerprint = ready_.engine_fingerprint;
  scheduler_ = std::make_unique<scheduler::Scheduler>(
      options, *model_, *index_, *pool_, clock_,
      [&outbox](GenerateEvent event) { outbox.add(std::move(event)); });
}

Result<void> Engine::adopt_blocks(const AdoptFrame& adopt) {
  std::vector<kv::RadixIndex::Published> entries;
  std::vector<bool> seen(ready_.num_blocks, false);
  for (const BlockEntry& entry : adopt.blocks) {
    const auto block = static_cast<std::size_t>(entry.block);
    if (entry.block < 0 || block >= seen.size() || seen[block]) {
      return make_error(Errc::kProtocol, "adopt names block " + std::to_string(entry.block) +
                                             " twice or outside the pool of " +
                                             std::to_string(seen.size()));
    }
    if (entry.tokens.size() != kBlockSize ||
        chain_block_hash(entry.parent, entry.tokens) != entry.hash) {
      return make_error(Errc::kProtocol, "adopt: the hash of block " + std::to_string(entry.block) +
                                             " is not that of its tokens");
    }
    seen[block] = true;
    entries.push_back({entry.root, entry.parent, entry.hash, entry.block, entry.tokens});
  }
  ready_.adopted_blocks = index_->adopt(entries);
  return {};
}

void Engine::build_snapshots(const InitFrame& init, Outbox& outbox) {
  pipeline_ = kvsnap::make_cpu_copy_pipeline(device_->threads());
  SnapshotService::Parts parts;
  parts.pool = pool_.get();
  parts.index = index_.get();
  parts.kv.base = model_->kv().base;
  parts.kv.format = {ready_.kv_layout, kBlockSize, ready_.block_bytes, init.tp_rank, init.tp_size};
  parts.arena = arena_ ? &*arena_ : nullptr;
  parts.pipeline = pipeline_.get();
  parts.outbox = &outbox;
  snapshots_ = std::make_unique<SnapshotService>(parts);
}

EngineStats Engine::stats() const {
  EngineStats stats = scheduler_->stats();
  stats.snapshots = snapshots_->num_snapshots();
  stats.restores = snapshots_->num_restores();
  stats.blocks_free = pool_->num_free() + index_->num_evictable();  // restores take some too
  return stats;
}

}  // namespace thaw::forkpool::worker
