#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "coalescer/core/backend.h"
#include "forkpool/model_pool.h"

namespace thaw::cli {

/// Joins the coalescer to a pool of several models. Thread-safe.
class ModelBackend final : public coalescer::Backend {
 public:
  ModelBackend(const forkpool::ModelPoolOptions& options, std::vector<forkpool::ModelSpec> models,
               forkpool::StartSlotPool start)
      : pool_(
            options, std::move(models), std::move(start),
            [this](GenerateEvent event) { deliver(std::move(event)); }, &clock_) {}

  void set_event_sink(std::function<void(GenerateEvent)> sink) override {
    const std::scoped_lock lock(mutex_);
    sink_ = std::move(sink);
  }
  void submit(ForkPlan plan) override { pool_.submit(std::move(plan)); }
  void cancel(RequestId request) override { pool_.cancel(request); }
  void end_choice(RequestId request, std::uint32_t choice) override {
    pool_.end_choice(request, choice);
  }
  PoolStatus status() const override { return pool_.status(); }
  void keep(KeepTrunk trunk, TrunkDone done) override {
    pool_.keep(std::move(trunk), std::move(done));
  }
  void release(const PinId& pin) override { pool_.release(pin); }
  void save(SaveTrunk trunk, TrunkDone done) override {
    pool_.save(std::move(trunk), std::move(done));
  }
  void load(LoadTrunk trunk, TrunkDone done) override {
    pool_.load(std::move(trunk), std::move(done));
  }

  forkpool::ModelPool& pool() { return pool_; }

 private:
  void deliver(GenerateEvent event) {
    const std::scoped_lock lock(mutex_);
    if (sink_) sink_(std::move(event));
  }

  SteadyClock clock_;
  std::mutex mutex_;
  std::function<void(GenerateEvent)> sink_;  // guarded by mutex_
  forkpool::ModelPool pool_;  // last: its threads call deliver()
};

}  // namespace thaw::cli
