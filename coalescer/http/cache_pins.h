#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "coalescer/core/backend.h"
#include "coalescer/core/session_pins.h"
#include "engine/base/clock.h"

namespace thaw::coalescer {

/// Prompts whose KV requests asked to keep for a time, within a budget: what was not asked for
/// longest goes first. I/O thread only.
class CachePins {
 public:
  /// `max_bytes`: of KV, at most; 0 keeps nothing. The pointers must outlive it.
  CachePins(std::uint64_t max_bytes, Backend* backend, const Clock* clock)
      : pins_(max_bytes), backend_(backend), clock_(clock) {}

  /// Runs a task on the I/O thread, from any thread.
  using Post = std::function<void(std::function<void()>)>;
  void set_post(Post post) { post_ = std::move(post); }

  /// Keeps what is there of the tokens' KV for `ttl`. What the owner keeps under the same `key` and
  /// is a beginning of `tokens` is let go: its KV is part of this. Fewer tokens than a block are
  /// not worth it.
  void keep(const TrunkOwner& owner, const std::string& key, std::vector<TokenId> tokens,
            std::chrono::seconds ttl);

  /// Lets go of those whose time is over.
  void expire();

  std::size_t num_pinned() const { return pins_.num_pinned(); }
  std::uint64_t bytes() const { return pins_.bytes(); }
  std::uint64_t num_given_up() const { return pins_.num_given_up(); }

 private:
  struct Entry {
    TrunkOwner owner;
    std::string key;
    std::vector<TokenId> tokens;
    std::chrono::seconds ttl;
    Clock::TimePoint until;
    std::uint64_t asked = 0;  // the last request to keep it
  };

  void ask(const PinId& pin);
  void on_kept(const PinId& pin, std::uint64_t asked, const Result<KeptTrunk>& kept);
  /// Lets it go altogether.
  void drop(const PinId& pin);

  SessionPins pins_;  // the budget's bookkeeping, by pin
  Backend* backend_;
  const Clock* clock_;
  Post post_;
  std::map<PinId, Entry> entries_;
  std::uint64_t num_asked_ = 0;
};

}  // namespace thaw::coalescer
