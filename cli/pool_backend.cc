#include "cli/pool_backend.h"

#include <utility>

namespace thaw::cli {

Result<std::unique_ptr<PoolBackend>> PoolBackend::start(forkpool::PoolOptions options,
                                                        forkpool::WeightsMemory weights) {
  std::unique_ptr<PoolBackend> backend(new PoolBackend);
  auto pool = forkpool::ForkPool::start(
      std::move(options), std::move(weights),
      [raw = backend.get()](GenerateEvent event) { raw->deliver(std::move(event)); });
  if (!pool) return pool.error();
  backend->pool_ = std::move(*pool);
  return backend;
}

void PoolBackend::set_event_sink(std::function<void(GenerateEvent)> sink) {
  const std::scoped_lock lock(mutex_);
  sink_ = std::move(sink);
}

void PoolBackend::deliver(GenerateEvent event) {
  const std::scoped_lock lock(mutex_);
  if (sink_) sink_(std::move(event));
}

}  // namespace thaw::cli
