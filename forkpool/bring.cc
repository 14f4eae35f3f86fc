// The half of Dispatcher that brings trunks back from the arena and from files, and sees that what
// is worth it gets there.

#include <algorithm>
#include <utility>

#include "engine/base/hash.h"
#include "engine/base/log.h"
#include "forkpool/dispatcher.h"

namespace thaw::forkpool {
namespace {

// Past this a file is not worth waiting for: the request prefills instead.
constexpr std::chrono::seconds kBringDeadline{30};
// A pool with nothing to do writes what was used more than once.
constexpr std::chrono::milliseconds kIdle{500};
constexpr std::uint32_t kMinRecentTokens = 64;

Tier tier_of(const Trunk& trunk) {
  if (trunk.snapshot) return Tier::kArena;
  return trunk.is_here() ? Tier::kFile : Tier::kStore;
}

}  // namespace

/// Sends requests to a worker. Those that a trunk from arena or file spares prefill wait for it.
void Dispatcher::deliver(const std::vector<RequestId>& ids, std::uint32_t worker) {
  std::vector<TrunkId> fresh;
  // Of the request before, which most often has the same trunk.
  const GenerateRequest* named = nullptr;
  PrefixNames names({}, {});
  for (const RequestId id : ids) {
    if (room(worker) == 0) {
      waiting_.push_back(id);
      continue;
    }
    Ongoing& entry = entries_.at(id);
    std::optional<TrunkIndex::Found> found;
    if (trunks_.size() > 0) {
      const GenerateRequest& request = entry.request();
      const std::uint32_t shared = named == nullptr ? 0 : shared_tokens(*named, request);
      names = shared > 0 ? PrefixNames(names, request.prompt, shared)
                         : PrefixNames(root_of(request, worker), request.prompt);
      named = &request;
      found = worth_bringing(entry, worker, names);
    }
    if (!found) {
      assign(entry, worker);
      continue;
    }
    entry.held_for = worker;
    ++outstanding_[worker];
    const auto [bringing, is_new] = brings_.try_emplace({found->id, worker});
    bringing->second.ids.push_back(id);
    if (!is_new) continue;
    bringing->second.gain_tokens = found->num_tokens;
    fresh.push_back(found->id);
  }
  for (const TrunkId trunk : fresh)
    bring(trunk, worker);
}

/// The trunk that spares more prefill than bringing it costs; num_tokens is what it spares. Where
/// what the store has does not pay, or does not answer, what is here may.
std::optional<TrunkIndex::Found> Dispatcher::worth_bringing(const Ongoing& entry,
                                                            std::uint32_t worker,
                                                            PrefixNames& names) {
  const auto here = trunks_.longest(names);
  if (store_) {
    const auto stored = trunks_.longest(names, TrunkIndex::Reach::kStore);
    if (stored && stored->num_tokens > (here ? here->num_tokens : 0)) {
      if (const auto gain = gain_of(entry, worker, names, *stored)) return gain;
    }
  }
  return here ? gain_of(entry, worker, names, *here) : std::nullopt;
}

/// What the trunk spares, where it pays.
std::optional<TrunkIndex::Found> Dispatcher::gain_of(const Ongoing& entry, std::uint32_t worker,
                                                     PrefixNames& names,
                                                     const TrunkIndex::Found& found) {
  const GenerateRequest& request = entry.request();
  const Trunk& trunk = *trunks_.find(found.id);
  // What somebody keeps is there to be used, however short.
  const std::uint32_t least = trunk.pins > 0 ? 0 : model_.fork_min_prefix_tokens;
  if (found.num_tokens < least) return std::nullopt;
  if (loop_.now() < trunk.retry_at) return std::nullopt;
  std::uint32_t alive = slots_[worker]->ledger().alive_tokens(names);
  if (alive < found.num_tokens && brings_.contains({found.id, worker})) return found;
  if (!trunk.is_here() && !store_->is_available()) return std::nullopt;
  for (const auto& [id, other] : entries_) {
    if (alive >= found.num_tokens) break;
    // What is being computed there will be alive.
    if (other.worker == worker) alive = std::max(alive, shared_tokens(request, other.request()));
  }
  if (alive >= found.num_tokens) return std::nullopt;
  const std::uint32_t gain = found.num_tokens - alive;
  if (gain < least ||
      model_.prefill_seconds(gain) <= model_.restore_seconds(trunk.bytes, tier_of(trunk))) {
    return std::nullopt;
  }
  return TrunkIndex::Found{found.id, gain};
}

void Dispatcher::bring(TrunkId trunk, std::uint32_t worker) {
  const std::pair key(trunk, worker);
  Bring& bringing = brings_.at(key);
  bringing.timer = std::make_unique<Loop::Timer>(loop_);
  const double patience =
      std::min(std::chrono::duration<double>(kBringDeadline).count(),
               model_.patience_seconds(bringing.gain_tokens, tier_of(*trunks_.find(trunk))));
  const auto until = loop_.now() + std::chrono::duration_cast<Clock::Duration>(
                                       std::chrono::duration<double>(patience));
  bringing.timer->start(until, [this, key] {
    arrived(key, make_error(Errc::kDeadlineExceeded, "the trunk did not come in time"));
  });
  const auto restore = [this, key, worker](TrunkId from_arena) {
    if (!brings_.contains(key)) {  // too late: it lies in the arena for the next one
      if (Trunk* late = trunks_.find(from_arena)) late->came();
      return;
    }
    if (!slots_[worker]->ready())
      return arrived(key, make_error(Errc::kUnavailable, "the worker died meanwhile"));
    transfers_.restore(from_arena, end_of(worker), kBringDeadline,
                       [this, key](const Result<std::uint32_t>& tokens) { arrived(key, tokens); });
  };
  if (trunks_.find(trunk)->snapshot || !spill_) return restore(trunk);
  spill_->fetch(trunk, [this, key, restore](const Result<TrunkId>& fetched) {
    if (!fetched) return arrived(key, fetched.error());
    restore(*fetched);
  });
}

void Dispatcher::arrived(std::pair<TrunkId, std::uint32_t> key,
                         const Result<std::uint32_t>& tokens) {
  const auto found = brings_.find(key);
  if (found == brings_.end()) return;
  const Bring bringing = std::move(found->second);
  brings_.erase(found);
  bringing.timer->cancel();
  if (Trunk* trunk = trunks_.find(key.first)) {
    if (tokens)
      trunk->came();
    else
      trunk->failed_to_come(loop_.now());
  }
  if (tokens) {
    tokens_restored_ += bringing.gain_tokens;
    logger("pool")->debug("trunk tokens={} restored worker={} for={}", *tokens, key.second,
                          bringing.ids.size());
  }
  release_held(bringing.ids, key.second);
}

TrunkKeeper::Workers Dispatcher::workers_for_keeper() {
  TrunkKeeper::Workers workers;
  workers.engine = [this] { return engine_.get(); };
  workers.most_alive = [this](PrefixNames& names) {
    std::optional<TrunkKeeper::Workers::Alive> best;
    for (std::uint32_t worker = 0; worker < slots_.size(); ++worker) {
      if (!slots_[worker]->ready()) continue;
      const std::uint32_t alive = slots_[worker]->ledger().alive_tokens(names);
      if (alive > (best ? best->num_tokens : 0)) best = {end_of(worker), alive};
    }
    return best;
  };
  workers.changed = [this] { changed(); };
  workers.prefill_seconds = [this](std::uint64_t tokens) { return model_.prefill_seconds(tokens); };
  return workers;
}

std::uint32_t Dispatcher::recent_min_tokens() const {
  return std::max(kMinRecentTokens, model_.fork_min_prefix_tokens);
}

void Dispatcher::tend_later() {
  if (!spill_ || !entries_.empty() || draining_) return;
  tend_timer_.start(loop_.now() + kIdle, [this] {
    if (entries_.empty() && !draining_) tend(false, [] {});
  });
}

/// Writes what was used of late and is in no file: at the end all of it, before that what was used
/// more than once, while there is nothing else to do.
void Dispatcher::tend(bool all, const std::function<void()>& done) {
  if (tending_) {
    // The other one may be about less: look again when it is through.
    if (all) tend_timer_.start(loop_.now() + kIdle / 10, [this, done] { tend(true, done); });
    return;
  }
  if (engine_ == nullptr || stopping_ || (!all && !entries_.empty())) return done();
  for (RecentTrunks::Entry& entry : recent_.entries()) {
    const std::size_t news = entry.token_ids.size() - entry.written_tokens;
    // A file is written as a whole: a chat's next turn waits until there is more of it.
    if (news == 0 || (!all && (entry.uses < 2 || news < entry.written_tokens / 4))) continue;
    entry.written_tokens = entry.token_ids.size();  // whatever comes of it: once
    PrefixNames names(engine_->root_of(entry.owner), entry.token_ids);
    const auto alive = keeper_.most_alive(names);
    const auto known = trunks_.longest(names);
    const std::uint32_t tokens =
        std::max(alive ? alive->num_tokens : 0, known ? known->num_tokens : 0);
    const bool has_file = known && !trunks_.find(known->id)->file.empty();
    if (tokens < recent_min_tokens() || (has_file && known->num_tokens >= tokens)) continue;
    const std::uint64_t bytes = engine_->format.block_bytes * (tokens / kBlockSize);
    if (model_.prefill_seconds(tokens) <= model_.restore_seconds(bytes, Tier::kFile)) continue;
    tending_ = true;
    const auto next = [this, all, done] {
      tending_ = false;
      tend(all, done);
    };
    return keeper_.bring_to_arena(
        entry.owner, entry.token_ids, [this, next](const Result<TrunkIndex::Found>& found) {
          if (!found) return loop_.post(next);
          spill_->spill(found->id, [this, next](const Result<TrunkId>&) { loop_.post(next); });
        });
  }
  done();
}

/// Half a full arena is written to files ahead of need: what must make room then is not lost.
void Dispatcher::relieve_arena() {
  if (!spill_ || transfers_.arena_used_bytes() < transfers_.arena_bytes() / 2) return;
  std::vector<TrunkId> only_here;
  for (const auto& [id, trunk] : trunks_.trunks())
    if (trunk.snapshot && trunk.file.empty() && trunk.has_owner) only_here.push_back(id);
  for (const TrunkId id : only_here) {
    if (!spill_->has_room()) return;
    spill_->spill(id, nullptr);
  }
}

}  // namespace thaw::forkpool
