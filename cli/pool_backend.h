#pragma once

#include <functional>
#include <memory>
#include <mutex>

#include "coalescer/core/backend.h"
#include "forkpool/fork_pool.h"

namespace thaw::cli {

/// Joins the coalescer to the fork pool: the one knows no processes, the other no requests over
/// HTTP. Thread-safe.
class PoolBackend final : public coalescer::Backend {
 public:
  static Result<std::unique_ptr<PoolBackend>> start(forkpool::PoolOptions options,
                                                    forkpool::WeightsMemory weights);

  void set_event_sink(std::function<void(GenerateEvent)> sink) override;
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

  forkpool::ForkPool& pool() { return *pool_; }

 private:
  PoolBackend() = default;
  void deliver(GenerateEvent event);

  std::mutex mutex_;
  std::function<void(GenerateEvent)> sink_;  // guarded by mutex_
  std::unique_ptr<forkpool::ForkPool> pool_;  // last: its thread calls deliver()
};

}  // namespace thaw::cli
