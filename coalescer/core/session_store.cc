#include "coalescer/core/session_store.h"

#include <algorithm>
#include <tuple>
#include <utility>

namespace thaw::coalescer {

SessionStore::SessionStore(SessionLimits limits, const Clock* clock, MakeId make_id,
                           std::function<std::int64_t()> unix_now)
    : limits_(limits),
      clock_(clock),
      make_id_(std::move(make_id)),
      unix_now_(std::move(unix_now)) {}

void SessionStore::hold(const SharedState& state) {
  if (state != nullptr && held_[state.get()]++ == 0) history_bytes_ += state->size_bytes();
}

void SessionStore::release(const SharedState& state) {
  if (state == nullptr) return;
  const auto found = held_.find(state.get());
  if (--found->second > 0) return;
  history_bytes_ -= state->size_bytes();
  held_.erase(found);
}

bool SessionStore::is_over(const StoredSession& session) const {
  return !session.busy && clock_->now() - session.last_used >= session.ttl;
}

Result<void> SessionStore::check_room(std::size_t new_sessions) const {
  if (sessions_.size() + new_sessions > limits_.max_sessions) {
    return make_error(Errc::kResourceExhausted,
                      "the server keeps " + std::to_string(sessions_.size()) + " sessions and " +
                          std::to_string(new_sessions) + " more would exceed its limit of " +
                          std::to_string(limits_.max_sessions) +
                          " (--max-sessions); delete some, or wait until their time is over");
  }
  if (history_bytes_ >= limits_.max_history_bytes) {
    return make_error(Errc::kResourceExhausted,
                      "the histories of all sessions take " + std::to_string(history_bytes_) +
                          " bytes, at the limit of " + std::to_string(limits_.max_history_bytes) +
                          " (--session-history-bytes); delete some, or wait until their time is "
                          "over");
  }
  return {};
}

Result<std::chrono::seconds> SessionStore::check_ttl(std::chrono::seconds ttl) const {
  if (ttl.count() == 0) return limits_.default_ttl;
  if (ttl.count() < 1 || ttl > limits_.max_ttl) {
    return make_error(Errc::kInvalidArgument, "`ttl_seconds` is " + std::to_string(ttl.count()) +
                                                  "; it must be from 1 to " +
                                                  std::to_string(limits_.max_ttl.count()));
  }
  return ttl;
}

StoredSession& SessionStore::insert(StoredSession session) {
  // A session of an earlier server keeps its place among the others.
  if (session.number == 0) session.number = next_number_;
  next_number_ = std::max(next_number_, session.number + 1);
  session.last_used = clock_->now();
  hold(session.state);
  for (const SessionCheckpoint& checkpoint : session.checkpoints)
    hold(checkpoint.state);
  std::string id = session.id;
  auto owned = std::make_unique<StoredSession>(std::move(session));
  return *sessions_.emplace(std::move(id), std::move(owned)).first->second;
}

Result<StoredSession*> SessionStore::create(NewSession session) {
  expire();
  if (auto room = check_room(1); !room) return room.error();
  const auto ttl = check_ttl(session.ttl);
  if (!ttl) return ttl.error();
  StoredSession stored;
  stored.id = make_id_();
  stored.tenant = std::move(session.tenant);
  stored.model = std::move(session.model);
  stored.served = std::move(session.served);
  stored.weights = std::move(session.weights);
  stored.vocab_size = session.vocab_size;
  stored.cache_salt = std::move(session.cache_salt);
  stored.label = std::move(session.label);
  stored.ttl = *ttl;
  stored.state = std::move(session.state);
  stored.created = unix_now_();
  return &insert(std::move(stored));
}

Result<StoredSession*> SessionStore::adopt(StoredSession session) {
  if (auto room = check_room(1); !room) return room.error();
  const auto ttl = check_ttl(session.ttl);
  if (!ttl) return ttl.error();
  session.ttl = *ttl;
  if (sessions_.contains(session.id))
    return make_error(Errc::kInvalidArgument, "a session `" + session.id + "` is here already");
  session.busy = false;
  session.children.clear();
  StoredSession& stored = insert(std::move(session));
  // Parents and children come in any order; whoever is there is joined.
  for (const auto& [id, other] : sessions_)
    if (other->parent == stored.id && other->tenant == stored.tenant) stored.children.push_back(id);
  sort_children(stored);
  const StoredSession* above = parent_of(stored);
  while (above != nullptr && above != &stored)
    above = parent_of(*above);
  if (above == &stored) stored.parent.clear();  // written down in a circle
  if (const StoredSession* above_it = parent_of(stored)) {
    StoredSession& parent = *sessions_.find(above_it->id)->second;
    parent.children.push_back(stored.id);
    sort_children(parent);
  }
  return &stored;
}

void SessionStore::sort_children(StoredSession& session) const {
  const auto number = [&](const std::string& id) {
    const auto found = sessions_.find(id);
    return found == sessions_.end() ? 0 : found->second->number;
  };
  std::ranges::sort(session.children, {},
                    [&](const std::string& id) { return std::pair(number(id), id); });
}

StoredSession* SessionStore::find(std::string_view tenant, std::string_view id) {
  const auto found = sessions_.find(id);
  if (found == sessions_.end() || found->second->tenant != tenant) return nullptr;
  if (is_over(*found->second)) {
    expire();
    return nullptr;
  }
  return found->second.get();
}

std::vector<StoredSession*> SessionStore::all() {
  std::vector<StoredSession*> found;
  found.reserve(sessions_.size());
  for (const auto& [id, session] : sessions_)
    found.push_back(session.get());
  std::ranges::sort(found, [](const StoredSession* a, const StoredSession* b) {
    return std::tie(a->number, a->id) < std::tie(b->number, b->id);
  });
  return found;
}

std::vector<StoredSession*> SessionStore::list(std::string_view tenant) {
  expire();
  std::vector<StoredSession*> found = all();
  std::erase_if(found, [&](const StoredSession* session) { return session->tenant != tenant; });
  return found;
}

Result<std::vector<StoredSession*>> SessionStore::fork(StoredSession& parent, std::uint32_t count,
                                                       const SharedState& state,
                                                       const std::vector<std::string>& labels,
                                                       std::chrono::seconds ttl) {
  touch(parent);
  expire();
  if (auto room = check_room(count); !room) return room.error();
  const auto checked = check_ttl(ttl.count() == 0 ? parent.ttl : ttl);
  if (!checked) return checked.error();
  const auto [end, ignored] = std::ranges::mismatch(state->tokens, parent.state->tokens);
  const auto shared = static_cast<std::uint32_t>(end - state->tokens.begin());
  std::vector<StoredSession*> children;
  for (std::uint32_t i = 0; i < count; ++i) {
    StoredSession child;
    child.id = make_id_();
    child.tenant = parent.tenant;
    child.model = parent.model;
    child.served = parent.served;
    child.weights = parent.weights;
    child.vocab_size = parent.vocab_size;
    child.cache_salt = parent.cache_salt;
    child.label = i < labels.size() ? labels[i] : "";
    child.parent = parent.id;
    child.fork_tokens = shared;
    child.ttl = *checked;
    child.state = state;
    child.created = unix_now_();
    parent.children.push_back(child.id);
    children.push_back(&insert(std::move(child)));
  }
  return children;
}

void SessionStore::remove(StoredSession& session) {
  if (on_removed_) on_removed_(session);
  StoredSession* parent = nullptr;
  if (const StoredSession* above = parent_of(session)) {
    parent = sessions_.find(above->id)->second.get();
    std::erase(parent->children, session.id);
  }
  for (const std::string& id : session.children) {
    const auto found = sessions_.find(id);
    if (found == sessions_.end()) continue;
    StoredSession& child = *found->second;
    child.parent = parent == nullptr ? "" : parent->id;
    child.fork_tokens = parent == nullptr ? 0 : std::min(child.fork_tokens, session.fork_tokens);
    if (parent != nullptr) parent->children.push_back(id);
  }
  release(session.state);
  for (const SessionCheckpoint& checkpoint : session.checkpoints)
    release(checkpoint.state);
  sessions_.erase(session.id);
}

void SessionStore::erase(StoredSession& session) {
  remove(session);
}

std::size_t SessionStore::erase_tree(StoredSession& session) {
  std::vector<std::string> pending{session.id};
  for (std::size_t i = 0; i < pending.size(); ++i) {
    const auto& children = sessions_.find(pending[i])->second->children;
    pending.insert(pending.end(), children.begin(), children.end());
  }
  for (const std::string& id : pending)
    remove(*sessions_.find(id)->second);
  return pending.size();
}

Result<void> SessionStore::begin_turn(StoredSession& session) {
  if (session.busy) {
    return make_error(Errc::kUnavailable,
                      "a turn of session `" + session.id +
                          "` is running, and a session has one at a time; wait for its end, or "
                          "fork the session and use a child for each turn");
  }
  if (auto room = check_room(0); !room) return room;
  session.busy = true;
  touch(session);
  return {};
}

void SessionStore::end_turn(const std::string& id, SharedState state) {
  const auto found = sessions_.find(id);
  if (found == sessions_.end()) return;
  StoredSession& session = *found->second;
  session.busy = false;
  touch(session);
  if (state == nullptr) return;
  hold(state);
  release(session.state);
  session.state = std::move(state);
  ++session.turns;
}

Result<void> SessionStore::checkpoint(StoredSession& session, std::string name) {
  for (const SessionCheckpoint& other : session.checkpoints) {
    if (other.name == name) {
      return make_error(Errc::kInvalidArgument,
                        "`name` is \"" + name + "\", which another checkpoint of this session has");
    }
  }
  if (session.checkpoints.size() >= kMaxCheckpoints) {
    return make_error(Errc::kResourceExhausted,
                      "the session has " + std::to_string(kMaxCheckpoints) +
                          " checkpoints, the most it may have; fork it, or start another");
  }
  touch(session);
  hold(session.state);
  session.checkpoints.push_back({std::move(name), session.state, unix_now_()});
  return {};
}

Result<void> SessionStore::rewind(StoredSession& session, SharedState state) {
  if (session.busy) {
    return make_error(Errc::kUnavailable, "a turn of session `" + session.id +
                                              "` is running; wait for its end, or fork the session "
                                              "at the point you want");
  }
  touch(session);
  hold(state);
  release(session.state);
  session.state = std::move(state);
  return {};
}

void SessionStore::expire() {
  std::vector<StoredSession*> over;
  for (const auto& [id, session] : sessions_)
    if (is_over(*session)) over.push_back(session.get());
  for (StoredSession* session : over)
    remove(*session);
  num_expired_ += over.size();
}

std::int64_t SessionStore::expires_at(const StoredSession& session) const {
  const auto left = session.last_used + session.ttl - clock_->now();
  return unix_now_() + std::chrono::duration_cast<std::chrono::seconds>(left).count();
}

const StoredSession* SessionStore::by_id(std::string_view id) const {
  const auto found = sessions_.find(id);
  return found == sessions_.end() ? nullptr : found->second.get();
}

const StoredSession* SessionStore::parent_of(const StoredSession& session) const {
  const StoredSession* parent = session.parent.empty() ? nullptr : by_id(session.parent);
  return parent != nullptr && parent->tenant == session.tenant ? parent : nullptr;
}

const StoredSession& SessionStore::root_of(const StoredSession& session) const {
  const StoredSession* root = &session;
  while (const StoredSession* above = parent_of(*root))
    root = above;
  return *root;
}

}  // namespace thaw::coalescer
