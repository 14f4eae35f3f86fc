#include "forkpool/worker/outbox.h"

#include <chrono>
#include <utility>

namespace thaw::forkpool::worker {
namespace {

constexpr std::chrono::milliseconds kFlushDeadline{30000};
// More than this in the buffer, and the worker stops computing until the pool has caught up.
constexpr std::size_t kMaxBacklogBytes = std::size_t{8} << 20;
// Keeps frames far below the caps of the protocol.
constexpr std::size_t kMaxEntries = 4096;

}  // namespace

void Outbox::add(GenerateEvent event) {
  events_.events.push_back(std::move(event));
}

void Outbox::publish(const BlockEntry& block) {
  queue_evicted();
  published_.blocks.push_back(block);
  if (published_.blocks.size() >= kMaxEntries) queue_published();
}

void Outbox::evict(const Hash128& hash) {
  queue_published();
  evicted_.hashes.push_back(hash);
  unsent_evictions_ = true;
  if (evicted_.hashes.size() >= kMaxEntries) queue_evicted();
}

void Outbox::queue_published() {
  if (published_.blocks.empty()) return;
  channel_->queue(std::exchange(published_, {}));
}

void Outbox::queue_evicted() {
  if (evicted_.hashes.empty()) return;
  channel_->queue(std::exchange(evicted_, {}));
}

void Outbox::queue_events() {
  if (events_.events.empty()) return;
  channel_->queue(std::exchange(events_, {}));
}

void Outbox::queue(const Frame& frame) {
  queue_published();
  queue_evicted();
  queue_events();
  channel_->queue(frame);
}

Result<void> Outbox::send(const Frame& frame) {
  queue_published();
  queue_evicted();
  channel_->queue(frame);
  return channel_->write_some();
}

Result<void> Outbox::flush_evictions() {
  if (!unsent_evictions_) return {};
  queue_published();
  queue_evicted();
  if (auto flushed = channel_->flush(kFlushDeadline); !flushed) return flushed;
  unsent_evictions_ = false;
  return {};
}

Result<void> Outbox::flush(const EngineStats& stats) {
  queue_published();
  queue_evicted();
  if (stats != last_stats_) {
    channel_->queue(StatsFrame{stats});
    last_stats_ = stats;
  }
  queue_events();
  if (auto written = channel_->write_some(); !written) return written;
  if (channel_->pending_bytes() > kMaxBacklogBytes) {
    if (auto flushed = channel_->flush(kFlushDeadline); !flushed) return flushed;
  }
  if (channel_->pending_bytes() == 0) unsent_evictions_ = false;
  return {};
}

}  // namespace thaw::forkpool::worker
