#include "forkpool/slot_pool.h"

#include <fcntl.h>

#include <cerrno>
#include <utility>

namespace thaw::forkpool {
namespace {

class ForkPoolSlot final : public SlotPool {
 public:
  explicit ForkPoolSlot(std::unique_ptr<ForkPool> pool) : pool_(std::move(pool)) {}
  void submit(ForkPlan plan) override { pool_->submit(std::move(plan)); }
  void cancel(RequestId request) override { pool_->cancel(request); }
  void end_choice(RequestId request, std::uint32_t choice) override {
    pool_->end_choice(request, choice);
  }
  PoolStatus status() const override { return pool_->status(); }
  void keep(KeepTrunk trunk, TrunkDone done) override {
    pool_->keep(std::move(trunk), std::move(done));
  }
  void release(const PinId& pin) override { pool_->release(pin); }
  void save(SaveTrunk trunk, TrunkDone done) override {
    pool_->save(std::move(trunk), std::move(done));
  }
  void load(LoadTrunk trunk, TrunkDone done) override {
    pool_->load(std::move(trunk), std::move(done));
  }
  void shutdown(std::chrono::milliseconds deadline) override {
    static_cast<void>(pool_->shutdown(deadline));
  }

 private:
  std::unique_ptr<ForkPool> pool_;
};

}  // namespace

StartSlotPool fork_pool_slots(PoolOptions options) {
  // What was suspended comes back beside what waits.
  options.max_waiting *= 2;
  return [options = std::move(options)](
             const ModelSpec& model,
             SlotPool::Listener listener) -> Result<std::unique_ptr<SlotPool>> {
    PoolOptions mine = options;
    if (model.max_model_len != 0) mine.max_model_len = model.max_model_len;
    WeightsMemory weights;
    weights.size_bytes = model.weights.size_bytes;
    weights.token_texts = model.weights.token_texts;
    weights.fd = UniqueFd(::fcntl(model.weights.fd.get(), F_DUPFD_CLOEXEC, 0));
    if (weights.fd.get() < 0) return io_error("weights of model " + model.name, errno);
    auto pool = ForkPool::start(std::move(mine), std::move(weights), std::move(listener.on_event),
                                std::move(listener.on_status));
    if (!pool) return std::move(pool).error();
    return std::unique_ptr<SlotPool>(std::make_unique<ForkPoolSlot>(std::move(*pool)));
  };
}

}  // namespace thaw::forkpool
