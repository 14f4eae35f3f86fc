#pragma once

#include <cstdint>
#include <optional>

#include "engine/base/generate.h"
#include "engine/base/pool_status.h"
#include "engine/kv/radix_index.h"
#include "forkpool/protocol.h"
#include "forkpool/worker/channel.h"

namespace thaw::forkpool::worker {

/// Collects what one step has to tell the pool and sends it in few frames. Publications and
/// evictions keep their order. One thread.
class Outbox {
 public:
  explicit Outbox(Channel& channel) : channel_(&channel) {}

  void add(GenerateEvent event);
  void publish(const BlockEntry& block);
  void evict(const Hash128& hash);

  /// To be called before any block's bytes may be overwritten: once this has returned, the pool
  /// will read of every eviction so far, even if this process dies next. Errors: the channel's;
  /// nothing may be written to a block then.
  Result<void> flush_evictions();

  /// Queues publications and evictions, then `stats` if they have changed, then events, and sends
  /// what the socket takes: whoever reads the end of a request knows its counters already. A pool
  /// that lags behind by much is waited for. Errors: the channel's.
  Result<void> flush(const EngineStats& stats);

  /// Queues `frame` behind everything that came before it.
  void queue(const Frame& frame);
  /// Writes `frame` at once, behind what was published and evicted before; events wait for flush(),
  /// which sends the counters first. Errors: the channel's.
  Result<void> send(const Frame& frame);

 private:
  void queue_events();
  void queue_published();
  void queue_evicted();

  Channel* channel_;
  EventsFrame events_;
  // At most one of these two holds entries.
  PublishFrame published_;
  EvictFrame evicted_;
  bool unsent_evictions_ = false;  ///< in evicted_ or in the channel's buffer
  std::optional<EngineStats> last_stats_;
};

}  // namespace thaw::forkpool::worker
