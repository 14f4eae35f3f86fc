#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <map>
#include <string>
#include <utility>

#include "engine/base/pool_status.h"

namespace thaw::coalescer {

/// Counts durations below fixed bounds, as Prometheus wants them. Not thread-safe.
class DurationHistogram {
 public:
  static constexpr std::array<double, 16> kBoundsSeconds = {
      0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120};

  void observe(std::chrono::nanoseconds duration);
  void append(std::string& out, const std::string& name, const std::string& help) const;

 private:
  std::array<std::uint64_t, kBoundsSeconds.size() + 1> counts_{};
  double sum_seconds_ = 0;
};

/// What /metrics tells of sessions.
struct SessionCounts {
  std::uint64_t created = 0;  ///< forks and imports too
  std::uint64_t forked = 0;  ///< children
  std::uint64_t turns = 0;
  std::uint64_t conflicts = 0;  ///< turns and rewinds refused since a turn was running
  std::uint64_t expired = 0;
  std::uint64_t given_up = 0;  ///< times that KV was let go for others
  std::uint64_t sessions = 0;  ///< gauges from here on
  std::uint64_t running = 0;
  std::uint64_t history_bytes = 0;
  std::uint64_t kept = 0;  ///< sessions with KV that is kept for them
  std::uint64_t kept_bytes = 0;
};

/// What the HTTP side counts by itself. Used on the I/O thread only.
struct Metrics {
  /// By endpoint and status; a stream that fails after its head counts with the error's status.
  std::map<std::pair<std::string, int>, std::uint64_t> requests;
  DurationHistogram time_to_first_token;
  DurationHistogram request_duration;
  std::uint64_t connections_total = 0;
  std::uint64_t connections = 0;
  std::uint64_t client_disconnects = 0;  ///< calls whose client hung up
  std::uint64_t requests_queued = 0;  ///< without a first token yet
  std::uint64_t requests_in_flight = 0;
  std::uint64_t windows = 0;
  std::uint64_t trunks = 0;
  SessionCounts sessions;
  std::uint64_t cache_pins = 0;  ///< prompts kept for a time
  std::uint64_t cache_pin_bytes = 0;
  std::uint64_t responses = 0;  ///< stored
  std::uint64_t response_bytes = 0;
  std::uint64_t responses_running = 0;  ///< in the background
  std::uint64_t responses_dropped = 0;  ///< that nobody deleted

  /// Prometheus text format 0.0.4, with the pool's counters.
  std::string render(const PoolStatus& status, const std::string& version) const;
};

}  // namespace thaw::coalescer
