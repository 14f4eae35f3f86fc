#include "coalescer/core/session_pins.h"

#include <algorithm>
#include <utility>

namespace thaw::coalescer {

void SessionPins::remove(const std::string& session, bool given_up) {
  const auto found = pins_.find(session);
  if (found == pins_.end() || found->second.tokens == 0) return;
  SessionPin& pin = found->second;
  const auto trunk = trunks_.find(pin.trunk);
  if (--trunk->second.holders == 0) {
    bytes_ -= trunk->second.bytes;
    trunks_.erase(trunk);
  }
  if (given_up) ++num_given_up_;
  pin = SessionPin{0, 0, given_up, "", pin.last_used};
}

std::optional<std::string> SessionPins::oldest(const std::string& except) const {
  const std::string* found = nullptr;
  std::uint64_t last_used = 0;
  for (const auto& [session, pin] : pins_) {
    if (pin.tokens == 0 || session == except) continue;
    if (found != nullptr && pin.last_used >= last_used) continue;
    found = &session;
    last_used = pin.last_used;
  }
  if (found == nullptr) return std::nullopt;
  return *found;
}

std::vector<std::string> SessionPins::kept(const std::string& session, std::uint32_t tokens,
                                           std::uint64_t bytes, std::string trunk) {
  remove(session, /*given_up=*/false);
  Held& held = trunks_[trunk];
  if (held.holders++ == 0) bytes_ += held.bytes = bytes;
  pins_[session] = SessionPin{tokens, bytes, false, std::move(trunk), ++uses_};
  std::vector<std::string> released;
  while (bytes_ > max_bytes_ && pins_[session].tokens > 0) {
    // Itself last: a session that is larger than the budget leaves the others alone.
    const bool alone_too_large = bytes > max_bytes_;
    auto victim = alone_too_large ? std::optional(session) : oldest(session);
    if (!victim) victim = session;
    remove(*victim, /*given_up=*/true);
    released.push_back(std::move(*victim));
  }
  return released;
}

std::optional<std::string> SessionPins::make_room(const std::string& session) {
  auto victim = oldest(session);
  if (victim) remove(*victim, /*given_up=*/true);
  return victim;
}

void SessionPins::touch(const std::string& session) {
  const auto found = pins_.find(session);
  if (found != pins_.end()) found->second.last_used = ++uses_;
}

void SessionPins::forget(const std::string& session) {
  remove(session, /*given_up=*/false);
}

void SessionPins::erase(const std::string& session) {
  remove(session, /*given_up=*/false);
  pins_.erase(session);
}

const SessionPin* SessionPins::find(const std::string& session) const {
  const auto found = pins_.find(session);
  return found == pins_.end() ? nullptr : &found->second;
}

std::size_t SessionPins::num_pinned() const {
  return static_cast<std::size_t>(
      std::ranges::count_if(pins_, [](const auto& item) { return item.second.tokens > 0; }));
}

}  // namespace thaw::coalescer
