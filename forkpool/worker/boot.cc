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
  int max_masked_rows() const override { return model_->max_masked_rows(); }
  Result<void> give_masks(model::StepHandle handle,
                          std::span<const std::span<const std::uint32_t>> masks) override {
    return model_->give_masks(handle, masks);
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

}  // namespace

Result<std::unique_ptr<Engine>> Engine::boot(const WorkerFds& fds, const BootFrames& frames,
                                             Outbox& outbox) {
  std::unique_ptr<Engine> engine(new Engine);
  // Owned from here on; mappings stay valid without their descriptors.
  const UniqueFd weights_fd(fds.weights);
  const UniqueFd kv_fd(fds.kv_pool);
  const UniqueFd arena_fd(fds.arena);
  if (auto mapped = engine->map_files(weights_fd.get(), arena_fd.get()); !mapped)
    return mapped.error();
  PartsRequest request;
  request.init = &frames.init;
  request.inherited = frames.inherited;
  request.image = &engine->image_;
  request.image_bytes = engine->weights_.size_bytes();
  request.weights_fd = weights_fd.get();
  request.kv_fd = kv_fd.get();
  request.arena = engine->arena();
  if (auto built = engine->build_model(request); !built) return built.error();
  engine->build_scheduler(frames, outbox);
  for (RankFrame& rank : engine->parts_->ranks())
    outbox.queue(std::move(rank));
  for (DeviceMemory& memory : engine->parts_->memory_to_keep(engine->model_->kv()))
    outbox.queue(KeepFrame{std::move(memory)});
  if (auto adopted = engine->adopt_blocks(frames.adopt, outbox); !adopted) return adopted.error();
  if (auto built = engine->build_snapshots(outbox); !built) return built.error();
  return engine;
}

Result<void> Engine::map_files(int weights_fd, int arena_fd) {
  const auto started = std::chrono::steady_clock::now();
  auto weights = map_inherited(weights_fd, MapAccess::kReadOnly, "weights");
  if (!weights) return weights.error();
  weights_ = std::move(*weights);
  auto image = checkpoint::WeightImageView::open(weights_.bytes());
  if (!image) return image.error();
  image_ = std::move(*image);
  const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - started;
  weights_ms_ = took.count();
  const auto arena_bytes = fd_size_bytes(arena_fd);
  if (!arena_bytes || *arena_bytes == 0) return {};
  auto arena = kvsnap::ArenaView::map(arena_fd);
  if (!arena) return arena.error();
  arena_ = std::move(*arena);
  return {};
}

Result<void> Engine::build_model(const PartsRequest& request) {
  const InitFrame& init = *request.init;
  const auto kv_dtype = parse_kv_dtype(init.kv_dtype);
  if (!kv_dtype) return kv_dtype.error();
  auto parts = make_device_parts(request);
  if (!parts) return parts.error();
  parts_ = std::move(*parts);
  weights_ms_ += parts_->weights_ms();
  auto model = parts_->make_model();
  if (!model) return model.error();
  model_ = std::move(*model);

  const model::KvView& kv = model_->kv();
  ready_.kernel_set = parts_->device().kernel_set();
  ready_.engine_fingerprint = model::engine_fingerprint(image_, *kv_dtype, parts_->device());
  // Two answers under one name are the same, so all that decides a bit is in it.
  ready_.system_fingerprint = "thaw-" THAW_VERSION "-" + ready_.kernel_set + "-" + kDrawRule + "-" +
                              init.kv_dtype + "-" + image_.digest().to_hex().substr(0, 12);
  ready_.kv_layout = kv.layout;
  ready_.block_bytes = kv.block_bytes;
  ready_.num_blocks = kv.num_blocks;
  ready_.max_model_len = init.max_model_len != 0
                             ? init.max_model_len
                             : static_cast<std::uint32_t>(model_->config().max_positions);
  return {};
}

void Engine::build_scheduler(const BootFrames& frames, Outbox& outbox) {
  const InitFrame& init = frames.init;
  model_ = std::make_unique<AnnouncingModel>(std::move(model_), outbox);
  pool_ = std::make_unique<kv::BlockPool>(ready_.num_blocks);
  kv::RadixIndex::Listener listener;
  listener.on_publish = [&outbox](const BlockEntry& block) { outbox.publish(block); };
  listener.on_evict = [this, &outbox](const Hash128& hash, BlockId) {
    outbox.evict(hash);
    offers_->on_evict(hash);
  };
  index_ = std::make_unique<kv::RadixIndex>(*pool_, std::move(listener));
  offers_ = std::make_unique<EvictionOffers>(*pool_, *index_, init.offer_min_tokens);
  scheduler::SchedulerOptions options;
  options.max_num_seqs = init.max_num_seqs;
  options.max_waiting = init.max_waiting;
  options.prefill_chunk_tokens = init.prefill_chunk_tokens;
  options.max_model_len = ready_.max_model_len;
  options.num_blocks = ready_.num_blocks;
  options.engine_fingerprint = ready_.engine_fingerprint;
  if (frames.token_texts != nullptr) {
    const model::ModelConfig& config = model_->config();
    grammars_ = std::make_unique<grammar::Service>(frames.token_texts, config.vocab_size,
                                                   config.eos_token_ids);
    options.grammars = grammars_.get();
  }
  scheduler_ = std::make_unique<scheduler::Scheduler>(
      options, *model_, *index_, *pool_, clock_,
      [&outbox](GenerateEvent event) { outbox.add(std::move(event)); });
}

Result<void> Engine::adopt_blocks(const AdoptFrame& adopt, Outbox& outbox) {
  if (!parts_->kv_survives(model_->kv())) {
    for (const BlockEntry& entry : adopt.blocks)
      outbox.evict(entry.hash);
    return {};
  }
  std::vector<bool> seen(ready_.num_blocks, false);
  for (const BlockEntry& entry : adopt.blocks) {
    const auto block = static_cast<std::size_t>(entry.block);
    if (entry.block < 0 || block >= seen.size() || seen[block]) {
      return make_error(Errc::kProtocol, "adopt names block " + std::to_string(entry.block) +
                                             " twice or outside the pool of " +
                                             std::to_string(seen.size()));
    }
    if (chain_block_hash(entry.parent, entry.tokens) != entry.hash) {
      return make_error(Errc::kProtocol, "adopt: the hash of block " + std::to_string(entry.block) +
                                             " is not that of its tokens");
    }
    seen[block] = true;
  }
  ready_.adopted_blocks = index_->adopt(adopt.blocks);
  return {};
}

Result<void> Engine::build_snapshots(Outbox& outbox) {
  auto pipeline = parts_->make_pipeline();
  if (!pipeline) return pipeline.error();
  pipeline_ = std::move(*pipeline);
  SnapshotService::Parts parts;
  parts.pool = pool_.get();
  parts.index = index_.get();
  parts.kv.base = model_->kv().base;
  // Of the whole, however many ranks have it in parts: it goes on at any number of them.
  parts.kv.format = {ready_.kv_layout, kBlockSize, ready_.block_bytes, 0, 1};
  parts.arena = arena();
  parts.pipeline = pipeline_.get();
  parts.outbox = &outbox;
  parts.map_peer = [this](const DeviceMemory& memory) { return parts_->map_peer(memory); };
  snapshots_ = std::make_unique<SnapshotService>(parts);
  return {};
}

EngineStats Engine::stats() const {
  EngineStats stats = scheduler_->stats();
  stats.snapshots = snapshots_->num_snapshots();
  stats.restores = snapshots_->num_restores();
  stats.blocks_free = pool_->num_free() + index_->num_evictable();  // restores take some too
  return stats;
}

}  // namespace thaw::forkpool::worker
