#include "coalescer/http/session_service.h"

#include <algorithm>
#include <random>
#include <utility>

#include "coalescer/core/unix_time.h"
#include "engine/base/hash.h"
#include "engine/base/log.h"
#include "engine/base/types.h"

namespace thaw::coalescer {
namespace {

/// Calls that have ended and can still become a session.
constexpr std::size_t kEndedCalls = 64;
constexpr std::size_t kEndedBytes = 64U << 20;

/// Ids are capabilities within a tenant: nobody may guess one. std::random_device reads the
/// system's generator.
std::string random_id() {
  std::random_device device;
  Hash128 id;
  for (std::size_t i = 0; i < id.bytes.size(); i += 4) {
    const std::uint32_t word = device();
    for (std::size_t j = 0; j < 4; ++j)
      id.bytes[i + j] = static_cast<std::uint8_t>(word >> (8 * j));
  }
  return id.to_hex();
}

}  // namespace

RunningTurn::~RunningTurn() {
  if (service_ != nullptr) service_->end_turn(session_, nullptr);
}

void RunningTurn::finish(const CallRecord& record, const TextCodec& codec) {
  if (service_ == nullptr) return;
  ++service_->counts_.turns;
  std::exchange(service_, nullptr)->end_turn(session_, state_of_record(record, 0, codec));
}

SessionService::SessionService(SessionLimits limits, std::uint64_t kept_bytes, Backend* backend,
                               const Clock* clock)
    : store_(limits, clock, random_id, unix_seconds),
      pins_(kept_bytes),
      backend_(backend),
      calls_(kEndedCalls, kEndedBytes) {
  store_.set_on_removed([this](const StoredSession& session) { forget(session); });
}

SessionCounts SessionService::counts() const {
  SessionCounts counts = counts_;
  counts.expired = store_.num_expired();
  counts.sessions = store_.size();
  counts.running = running_.size();
  counts.history_bytes = store_.history_bytes();
  counts.kept = pins_.num_pinned();
  counts.kept_bytes = pins_.bytes();
  counts.given_up = pins_.num_given_up();
  return counts;
}

ApiError session_error(const Error& error, std::string param) {
  ApiError result = to_api_error(error);
  result.param = std::move(param);
  if (error.code != Errc::kUnavailable) return result;
  result.status = 409;
  result.type = "invalid_request_error";
  result.code = "session_busy";
  return result;
}

ApiResult<StoredSession*> SessionService::find(const std::string& tenant, const std::string& id,
                                               const std::string& param) {
  StoredSession* session = is_session_id(id) ? store_.find(tenant, id) : nullptr;
  if (session != nullptr) return session;
  // The same words whether it never was, is over, or belongs to somebody else.
  ApiError error =
      invalid_field(param, "there is no session `" + id.substr(0, 64) + "`", "session_not_found");
  error.status = 404;
  return error;
}

ApiResult<std::shared_ptr<RunningTurn>> SessionService::begin_turn(StoredSession& session) {
  if (auto begun = store_.begin_turn(session); !begun) {
    if (begun.error().code == Errc::kUnavailable) ++counts_.conflicts;
    return session_error(begun.error(), "session_id");
  }
  pins_.touch(session.id);
  return std::make_shared<RunningTurn>(this, session.id);
}

void SessionService::set_running(const std::string& session,
                                 std::shared_ptr<const CallRecord> record) {
  running_[session] = std::move(record);
}

std::shared_ptr<const CallRecord> SessionService::running(const std::string& session) const {
  const auto found = running_.find(session);
  return found == running_.end() ? nullptr : found->second;
}

void SessionService::end_turn(const std::string& session, SharedState state) {
  running_.erase(session);
  const bool changed = state != nullptr;
  store_.end_turn(session, std::move(state));
  const StoredSession* stored = store_.by_id(session);
  if (changed && stored != nullptr) keep(*stored);
}

void SessionService::keep(const StoredSession& session) {
  if (pins_.max_bytes() == 0 || session.state->tokens.size() < kBlockSize) return;
  const std::uint64_t asked = ++num_asked_;
  asked_[session.id] = asked;
  ask_to_keep(session.id, owner_of(session), session.state, asked);
}

void SessionService::ask_to_keep(const std::string& session, const TrunkOwner& owner,
                                 SharedState state, std::uint64_t asked) {
  // No end of time: the store knows when a session's is over.
  KeepTrunk trunk{pin_of(session), owner, state->tokens, std::chrono::seconds(0)};
  backend_->keep(std::move(trunk), [this, post = post_, session, owner, state = std::move(state),
                                    asked](const Result<KeptTrunk>& kept) {
    post([this, session, owner, state, asked, kept] {
      on_kept(session, owner, state, asked, kept);
    });
  });
}

void SessionService::on_kept(const std::string& session, const TrunkOwner& owner,
                             const SharedState& state, std::uint64_t asked,
                             const Result<KeptTrunk>& kept) {
  const auto last = asked_.find(session);
  if (last == asked_.end()) return backend_->release(pin_of(session));  // it is gone
  if (last->second != asked) return;  // another answer follows
  if (kept) return book(session, *kept);
  if (kept.error().code == Errc::kResourceExhausted) {
    // What it keeps is the beginning of what it could keep: that goes before others' does.
    std::optional<std::string> victim;
    if (const SessionPin* own = pins_.find(session); own != nullptr && own->tokens > 0) {
      pins_.forget(session);
      victim = session;
    } else {
      victim = pins_.make_room(session);
    }
    if (victim) {
      backend_->release(pin_of(*victim));
      return ask_to_keep(session, owner, state, asked);
    }
  }
  static const auto log = logger("http");
  log->debug("event=session_not_kept session={} error=\"{}\"", session, kept.error().message);
}

void SessionService::book(const std::string& session, const KeptTrunk& kept) {
  for (const std::string& victim :
       pins_.kept(session, kept.num_tokens, kept.bytes, kept.trunk.to_hex()))
    backend_->release(pin_of(victim));
}

void SessionService::on_loaded(const std::string& session, const KeptTrunk& kept) {
  const StoredSession* stored = store_.by_id(session);
  if (stored == nullptr) return backend_->release(pin_of(session));
  asked_[session] = ++num_asked_;
  book(session, kept);
}

PinId SessionService::pin_of(const std::string& session) {
  return "session-" + session;
}

void SessionService::forget(const StoredSession& session) {
  asked_.erase(session.id);
  spilled_.erase(session.id);
  if (files_ != nullptr && background_) {
    background_([files = files_, id = session.id] { files->remove(id); });
  }
  if (pins_.find(session.id) != nullptr) backend_->release(pin_of(session.id));
  pins_.erase(session.id);
}

}  // namespace thaw::coalescer
