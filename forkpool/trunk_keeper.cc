#include "forkpool/trunk_keeper.h"

#include <utility>

#include "engine/base/hash.h"
#include "engine/base/log.h"

namespace thaw::forkpool {
namespace {

// A snapshot is a copy inside the memory; a worker that is in the middle of a step answers after
// it.
constexpr std::chrono::seconds kKeepDeadline{30};
constexpr std::chrono::hours kMaxTtl{24 * 366};

Error wrong(std::string what) {
  return make_error(Errc::kInvalidArgument, std::move(what));
}

Result<void> check_pin(const PinId& pin, std::chrono::seconds ttl) {
  if (pin.empty() || pin.size() > kMaxNameBytes) {
    return wrong("a pin has 1 to " + std::to_string(kMaxNameBytes) + " bytes, not " +
                 std::to_string(pin.size()));
  }
  if (ttl.count() < 0 || ttl > kMaxTtl) {
    return wrong("a trunk is kept for 1 to " +
                 std::to_string(std::chrono::seconds(kMaxTtl).count()) +
                 " seconds, or 0 until it is released, not for " + std::to_string(ttl.count()));
  }
  return {};
}

Result<void> check_tokens(const std::vector<TokenId>& token_ids) {
  if (token_ids.size() < kBlockSize || token_ids.size() > kMaxTokens) {
    return wrong("a trunk has " + std::to_string(kBlockSize) + " to " + std::to_string(kMaxTokens) +
                 " tokens, not " + std::to_string(token_ids.size()));
  }
  for (const TokenId token : token_ids)
    if (token < 0) return wrong("token " + std::to_string(token) + " is negative");
  return {};
}

}  // namespace

TrunkKeeper::TrunkKeeper(Loop& loop, const Places& places, Workers workers)
    : loop_(loop),
      places_(places),
      trunks_(*places.trunks),
      workers_(std::move(workers)),
      expiry_timer_(loop) {}

std::uint64_t TrunkKeeper::begin(const PinId& pin, std::chrono::milliseconds deadline,
                                 TrunkDone done) {
  const std::uint64_t id = next_call_++;
  Call& call = calls_[id];
  call.pin = pin;
  call.done = std::move(done);
  call.timer = std::make_unique<Loop::Timer>(loop_);
  call.timer->start(loop_.now() + deadline, [this, id] {
    if (const auto held = calls_.at(id).held) {
      logger("pool")->info("a trunk of {} tokens is kept; its file is not written yet",
                           held->num_tokens);
      return end(id, *held);
    }
    end(id, make_error(Errc::kDeadlineExceeded, "the trunk was not ready in time"));
  });
  return id;
}

void TrunkKeeper::end(std::uint64_t call, Result<KeptTrunk> result) {
  const auto found = calls_.find(call);
  if (found == calls_.end()) return;
  const TrunkDone done = std::move(found->second.done);
  calls_.erase(found);
  done(std::move(result));
}

void TrunkKeeper::keep(const KeepTrunk& trunk, TrunkDone done) {
  if (stopped_) return done(make_error(Errc::kUnavailable, "the server is shutting down"));
  if (auto checked = check_pin(trunk.pin, trunk.ttl); !checked) return done(checked.error());
  if (auto checked = check_tokens(trunk.token_ids); !checked) return done(checked.error());
  const std::uint64_t call = begin(trunk.pin, kKeepDeadline, std::move(done));
  const EngineIdentity* engine = workers_.engine();
  if (engine == nullptr) return end(call, make_error(Errc::kUnavailable, "no worker is ready"));
  // What a file holds already needs no copy in the arena.
  PrefixNames names(engine->root_of(trunk.owner), trunk.token_ids);
  const auto known = trunks_.longest(names);
  const auto alive = workers_.most_alive(names);
  if (known && known->num_tokens >= (alive ? alive->num_tokens : 0)) {
    trunks_.find(known->id)->set_owner(trunk.owner);  // whose root it has
    return keep_found(call, *known, trunk.ttl);
  }
  bring_to_arena(trunk.owner, trunk.token_ids,
                 [this, call, ttl = trunk.ttl](const Result<TrunkIndex::Found>& found) {
                   if (!calls_.contains(call)) return;  // too late, or released
                   if (!found) return end(call, found.error());
                   keep_found(call, *found, ttl);
                 });
}

void TrunkKeeper::keep_found(std::uint64_t call, const TrunkIndex::Found& found,
                             std::chrono::seconds ttl) {
  const Trunk& trunk = *trunks_.find(found.id);
  hold_and_write(call, found.id, {found.num_tokens, trunk.bytes, {}}, ttl);
}

/// Where there is a place for it, waits until a file has it, as long as the call may take: what is
/// said to be kept outlives the server then.
void TrunkKeeper::hold_and_write(std::uint64_t call, TrunkId trunk, KeptTrunk what,
                                 std::chrono::seconds ttl) {
  Call& waiting = calls_.at(call);
  what.trunk = trunks_.find(trunk)->names.back();
  hold(waiting.pin, trunk, ttl);
  if (places_.spill == nullptr) return end(call, what);
  waiting.held = what;
  // That it could not be written was logged; the arena has it.
  places_.spill->spill(trunk, [this, call, what](const Result<TrunkId>&) { end(call, what); });
}

void TrunkKeeper::bring_to_arena(const TrunkOwner& owner, const std::vector<TokenId>& token_ids,
                                 std::function<void(Result<TrunkIndex::Found>)> done) {
  if (places_.arena == nullptr) {
    return done(
        make_error(Errc::kUnsupported, "there is no arena to keep KV in (--arena-bytes 0)"));
  }
  const EngineIdentity* engine = workers_.engine();
  if (engine == nullptr) return done(make_error(Errc::kUnavailable, "no worker is ready"));
  PrefixNames names(engine->root_of(owner), token_ids);
  const auto known = trunks_.longest(names);
  const auto alive = workers_.most_alive(names);
  const std::uint32_t alive_tokens = alive ? alive->num_tokens : 0;
  if (known && known->num_tokens >= alive_tokens) {
    trunks_.find(known->id)->set_owner(owner);
    if (trunks_.find(known->id)->snapshot) return done(*known);
    if (places_.spill == nullptr)
      return done(make_error(Errc::kNotFound, "the trunk is neither in memory nor in a file"));
    return places_.spill->fetch(
        known->id, [done = std::move(done), tokens = known->num_tokens](Result<TrunkId> fetched) {
          if (!fetched) return done(fetched.error());
          done(TrunkIndex::Found{*fetched, tokens});
        });
  }
  if (!alive) {
    const auto stored = trunks_.longest(names, TrunkIndex::Reach::kStore);
    if (stored && places_.spill != nullptr) {
      return places_.spill->fetch(
          stored->id, [done = std::move(done), tokens = stored->num_tokens](Result<TrunkId> got) {
            if (!got) return done(got.error());
            done(TrunkIndex::Found{*got, tokens});
          });
    }
    return done(make_error(Errc::kNotFound,
                           "the KV of these " + std::to_string(token_ids.size()) +
                               " tokens is not there; it is once a request has computed it"));
  }
  places_.transfers->write(
      alive->worker, names, alive_tokens / kBlockSize,
      [this, owner, alive_tokens, done = std::move(done)](const Result<TrunkId>& written) {
        if (!written) return done(written.error());
        trunks_.find(*written)->set_owner(owner);
        done(TrunkIndex::Found{*written, alive_tokens});
      });
}

void TrunkKeeper::hold(const PinId& pin, TrunkId trunk, std::chrono::seconds ttl) {
  Trunk& held = *trunks_.find(trunk);
  ++held.pins;
  settle_pin(places_.arena, held);
  drop(pin);  // what it held before, which may be the same
  Pin& entry = pins_[pin];
  entry.trunk = trunk;
  if (ttl.count() > 0) {
    entry.expiry = loop_.now() + ttl;
    expiries_.emplace(*entry.expiry, pin);
  }
  arm_expiry();
  workers_.changed();
}

void TrunkKeeper::drop(const PinId& pin) {
  const auto found = pins_.find(pin);
  if (found == pins_.end()) return;
  if (const auto& expiry = found->second.expiry) expiries_.erase({*expiry, pin});
  Trunk* held = trunks_.find(found->second.trunk);
  pins_.erase(found);
  if (held == nullptr) return;
  --held->pins;
  settle_pin(places_.arena, *held);
}

void TrunkKeeper::release(const PinId& pin) {
  drop(pin);
  arm_expiry();
  workers_.changed();
  std::vector<std::uint64_t> cancelled;
  for (const auto& [id, call] : calls_)
    if (!call.pin.empty() && call.pin == pin) cancelled.push_back(id);
  for (const std::uint64_t id : cancelled)
    end(id, make_error(Errc::kCancelled, "the pin was released before it held anything"));
}

void TrunkKeeper::arm_expiry() {
  if (expiries_.empty()) return expiry_timer_.cancel();
  expiry_timer_.start(expiries_.begin()->first, [this] {
    while (!expiries_.empty() && expiries_.begin()->first <= loop_.now()) {
      const PinId pin = expiries_.begin()->second;
      logger("pool")->debug("pin={} expired", pin);
      drop(pin);
    }
    arm_expiry();
    workers_.changed();
  });
}

void TrunkKeeper::save(const SaveTrunk& trunk, TrunkDone done) {
  if (stopped_) return done(make_error(Errc::kUnavailable, "the server is shutting down"));
  if (auto checked = check_tokens(trunk.token_ids); !checked) return done(checked.error());
  if (trunk.path.empty()) return done(wrong("the path to save to is empty"));
  const std::uint64_t call = begin("", trunk.deadline, std::move(done));
  bring_to_arena(
      trunk.owner, trunk.token_ids,
      [this, call, path = trunk.path, owner = trunk.owner](const Result<TrunkIndex::Found>& found) {
        if (!found) return end(call, found.error());
        if (!calls_.contains(call)) return;  // too late
        places_.files->write(
            found->id, found->num_tokens, path, owner, *workers_.engine(),
            workers_.prefill_seconds(found->num_tokens),
            [this, call](Result<KeptTrunk> written) { end(call, std::move(written)); });
      });
}

void TrunkKeeper::load(const LoadTrunk& trunk, TrunkDone done) {
  if (stopped_) return done(make_error(Errc::kUnavailable, "the server is shutting down"));
  if (auto checked = check_pin(trunk.pin, trunk.ttl); !checked) return done(checked.error());
  if (trunk.path.empty()) return done(wrong("the path to load from is empty"));
  const std::uint64_t call = begin(trunk.pin, trunk.deadline, std::move(done));
  if (workers_.engine() != nullptr) return start_load(call, trunk);
  waiting_for_engine_.emplace_back([this, call, trunk] { start_load(call, trunk); });
}

void TrunkKeeper::start_load(std::uint64_t call, const LoadTrunk& trunk) {
  if (!calls_.contains(call)) return;
  places_.files->read(
      trunk.path, trunk.owner, *workers_.engine(),
      [this, call, ttl = trunk.ttl](const Result<TrunkId>& read) {
        if (!calls_.contains(call)) return;  // too late, or released
        if (!read) return end(call, read.error());
        const Trunk& loaded = *trunks_.find(*read);
        hold_and_write(call, *read, {loaded.num_tokens(), loaded.bytes, loaded.token_ids}, ttl);
      });
}

void TrunkKeeper::on_engine() {
  for (const auto& waiting : std::exchange(waiting_for_engine_, {}))
    waiting();
}

void TrunkKeeper::stop() {
  stopped_ = true;
  while (!calls_.empty())
    end(calls_.begin()->first, make_error(Errc::kUnavailable, "the server is shutting down"));
}

}  // namespace thaw::forkpool
