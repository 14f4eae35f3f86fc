#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "coalescer/core/session_state.h"
#include "engine/base/clock.h"
#include "engine/base/result.h"

namespace thaw::coalescer {

struct SessionLimits {
  std::uint32_t max_sessions = 1024;
  std::uint64_t max_history_bytes = 256ULL << 20;  ///< token lines and messages, all sessions
  std::chrono::seconds default_ttl{3600};
  std::chrono::seconds max_ttl{604800};
};

/// A named point that a session can be taken back to.
struct SessionCheckpoint {
  std::string name;
  SharedState state;
  std::int64_t created = 0;  ///< seconds since the epoch
};

/// A conversation that the server keeps.
struct StoredSession {
  std::string id;  ///< 32 hex digits, random
  std::string tenant;
  std::string model;  ///< as its maker called it
  std::string served;  ///< the model's own name, which `model` may be an alias of
  std::string weights;  ///< of that model; its turns run with these or not at all
  int vocab_size = 0;
  std::string cache_salt;
  std::string label;
  std::string parent;  ///< empty: a root
  std::uint32_t fork_tokens = 0;  ///< tokens shared with the parent when it was forked
  std::vector<std::string> children;  ///< oldest first
  SharedState state;
  std::vector<SessionCheckpoint> checkpoints;  ///< oldest first
  std::chrono::seconds ttl{0};
  Clock::TimePoint last_used;
  std::int64_t created = 0;  ///< seconds since the epoch
  std::uint64_t number = 0;  ///< order of creation; 0: none yet
  std::uint64_t turns = 0;  ///< that were finished
  bool busy = false;  ///< a turn is running
};

/// What a new session is made of.
struct NewSession {
  std::string tenant;
  std::string model;
  std::string served;
  std::string weights;
  int vocab_size = 0;
  std::string cache_salt;
  std::string label;
  std::chrono::seconds ttl{0};  ///< 0: the default
  SharedState state;
};

/// The sessions of one server: a forest of conversations with owners, lifetimes and limits. Knows
/// no sockets, no text and no KV. Pointers to sessions hold until the next call that may remove
/// some. One thread.
class SessionStore {
 public:
  using MakeId = std::function<std::string()>;
  /// `clock` must outlive the store. `unix_now` gives seconds since the epoch.
  SessionStore(SessionLimits limits, const Clock* clock, MakeId make_id,
               std::function<std::int64_t()> unix_now);

  /// Called for every session that is deleted or whose time is over, before it goes.
  void set_on_removed(std::function<void(const StoredSession&)> on_removed) {
    on_removed_ = std::move(on_removed);
  }

  /// Errors: kInvalidArgument for a TTL out of range; kResourceExhausted at a limit.
  Result<StoredSession*> create(NewSession session);
  /// Puts a session back that was written down by another process, with its own id and parent.
  /// Errors: those of create(); kInvalidArgument where the id is taken.
  Result<StoredSession*> adopt(StoredSession session);
  /// The tenant's session; null where there is none, or its time is over, or it is another's.
  StoredSession* find(std::string_view tenant, std::string_view id);
  /// The tenant's sessions, oldest first.
  std::vector<StoredSession*> list(std::string_view tenant);
  /// All sessions, oldest first.
  std::vector<StoredSession*> all();

  /// `count` children of `parent` that start with `state`. Either all are made or none.
  Result<std::vector<StoredSession*>> fork(StoredSession& parent, std::uint32_t count,
                                           const SharedState& state,
                                           const std::vector<std::string>& labels,
                                           std::chrono::seconds ttl);

  /// Children of a deleted session become its parent's.
  void erase(StoredSession& session);
  /// With everything below it. Returns how many went.
  std::size_t erase_tree(StoredSession& session);

  /// One turn at a time. Errors: kUnavailable while one runs; kResourceExhausted where the history
  /// of all sessions has reached its limit.
  Result<void> begin_turn(StoredSession& session);
  /// `state` null: the turn failed or was broken off, and nothing of it stays. The session may be
  /// gone.
  void end_turn(const std::string& id, SharedState state);

  /// Errors: kInvalidArgument for a name that is taken; kResourceExhausted at a limit.
  Result<void> checkpoint(StoredSession& session, std::string name);
  /// Errors: kUnavailable while a turn runs.
  Result<void> rewind(StoredSession& session, SharedState state);

  void touch(StoredSession& session) { session.last_used = clock_->now(); }
  /// Drops sessions whose time is over; those with a running turn stay.
  void expire();
  /// Seconds since the epoch at which the session's time is over, unless it is used before.
  std::int64_t expires_at(const StoredSession& session) const;
  /// The session at the root of the tree that `session` is in.
  const StoredSession& root_of(const StoredSession& session) const;
  /// Whoever owns it; null where there is none.
  const StoredSession* by_id(std::string_view id) const;
  /// Null for a root, and where the parent is not here.
  const StoredSession* parent_of(const StoredSession& session) const;

  std::size_t size() const { return sessions_.size(); }
  std::uint64_t history_bytes() const { return history_bytes_; }
  std::uint64_t num_expired() const { return num_expired_; }
  const SessionLimits& limits() const { return limits_; }

 private:
  Result<void> check_room(std::size_t new_sessions) const;
  Result<std::chrono::seconds> check_ttl(std::chrono::seconds ttl) const;
  /// In the order of their creation.
  void sort_children(StoredSession& session) const;
  StoredSession& insert(StoredSession session);
  void remove(StoredSession& session);
  void hold(const SharedState& state);
  void release(const SharedState& state);
  bool is_over(const StoredSession& session) const;

  SessionLimits limits_;
  const Clock* clock_;
  MakeId make_id_;
  std::function<std::int64_t()> unix_now_;
  std::function<void(const StoredSession&)> on_removed_;
  std::map<std::string, std::unique_ptr<StoredSession>, std::less<>> sessions_;
  std::unordered_map<const SessionState*, std::uint32_t> held_;  // states, with their holders
  std::uint64_t history_bytes_ = 0;  // of the states in held_
  std::uint64_t next_number_ = 1;
  std::uint64_t num_expired_ = 0;
};

/// Most checkpoints of one session.
inline constexpr std::size_t kMaxCheckpoints = 64;

}  // namespace thaw::coalescer
