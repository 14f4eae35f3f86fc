#include "forkpool/trunk_keeper.h"

#include <utility>

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

TrunkKeeper::TrunkKeeper(Loop& loop, kvsnap::Arena* arena, TrunkIndex& trunks, Transfers& transfers,
                         Workers workers)
    : loop_(loop),
      arena_(arena),
      trunks_(trunks),
      transfers_(transfers),
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

void TrunkKeeper::keep(KeepTrunk trunk, TrunkDone done) {
  if (stopped_) return done(make_error(Errc::kUnavailable, "the server is shutting down"));
  if (auto checked = check_pin(trunk.pin, trunk.ttl); !checked) return done(checked.error());
  if (auto checked = check_tokens(trunk.token_ids); !checked) return done(checked.error());
  if (arena_ == nullptr) {
    return done(
        make_error(Errc::kUnsupported, "there is no arena to keep KV in (--arena-bytes 0)"));
  }
  const auto root = workers_.cache_root(trunk.owner);
  if (!root) return done(make_error(Errc::kUnavailable, "no worker is ready"));
  PrefixNames names(*root, trunk.token_ids);
  const auto known = trunks_.longest(names);
  const auto alive = workers_.most_alive(names);
  const std::uint32_t alive_tokens = alive ? alive->num_tokens : 0;
  if (known && known->num_tokens >= alive_tokens) {
    const Trunk& found = *trunks_.find(known->id);
    const std::uint64_t bytes = found.bytes;
    hold(trunk.pin, known->id, trunk.ttl);
    return done(KeptTrunk{known->num_tokens, bytes, {}});
  }
  if (alive_tokens == 0) {
    return done(make_error(Errc::kNotFound,
                           "the KV of these " + std::to_string(trunk.token_ids.size()) +
                               " tokens is not there; it is once a request has computed it"));
  }
  const std::uint64_t call = begin(trunk.pin, kKeepDeadline, std::move(done));
  transfers_.write(alive->worker, names, alive_tokens / kBlockSize,
                   [this, call, ttl = trunk.ttl](const Result<TrunkId>& written) {
                     const auto found = calls_.find(call);
                     if (found == calls_.end()) return;  // too late, or released
                     if (!written) return end(call, written.error());
                     const Trunk& kept = *trunks_.find(*written);
                     const KeptTrunk what{kept.num_tokens(), kept.bytes, {}};
                     hold(found->second.pin, *written, ttl);
                     end(call, what);
                   });
}

void TrunkKeeper::hold(const PinId& pin, TrunkId trunk, std::chrono::seconds ttl) {
  Trunk& held = *trunks_.find(trunk);
  if (held.pins++ == 0 && held.snapshot) arena_->pin(*held.snapshot);
  drop(pin);  // what it held before, which may be the same
  Pin& entry = pins_[pin];
  entry.trunk = trunk;
  if (ttl.count() > 0) {
    entry.expiry = loop_.now() + ttl;
    expiries_.emplace(*entry.expiry, pin);
  }
  arm_expiry();
}

void TrunkKeeper::drop(const PinId& pin) {
  const auto found = pins_.find(pin);
  if (found == pins_.end()) return;
  if (found->second.expiry) expiries_.erase({*found->second.expiry, pin});
  Trunk* held = trunks_.find(found->second.trunk);
  pins_.erase(found);
  if (held != nullptr && --held->pins == 0 && held->snapshot) arena_->unpin(*held->snapshot);
}

void TrunkKeeper::release(const PinId& pin) {
  drop(pin);
  arm_expiry();
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
  });
}

void TrunkKeeper::save(SaveTrunk /*trunk*/, TrunkDone done) {
  done(make_error(Errc::kUnsupported, "trunks cannot be written to files yet"));
}

void TrunkKeeper::load(LoadTrunk /*trunk*/, TrunkDone done) {
  done(make_error(Errc::kUnsupported, "trunks cannot be read from files yet"));
}

void TrunkKeeper::stop() {
  stopped_ = true;
  while (!calls_.empty())
    end(calls_.begin()->first, make_error(Errc::kUnavailable, "the server is shutting down"));
}

}  // namespace thaw::forkpool
