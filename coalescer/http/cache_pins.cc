#include "coalescer/http/cache_pins.h"

#include <algorithm>
#include <span>
#include <utility>

#include "engine/base/hash.h"
#include "engine/base/log.h"

namespace thaw::coalescer {
namespace {

/// Their tokens are held, too.
constexpr std::size_t kMaxEntries = 4096;

PinId pin_of(const TrunkOwner& owner, std::span<const TokenId> tokens) {
  // Lengths stand between the names, so that no two owners read alike.
  std::string name;
  for (const std::string* part : {&owner.tenant, &owner.cache_salt, &owner.model, &owner.adapter})
    name += std::to_string(part->size()) + ':' + *part;
  return "prompt-" + hash_text(name + hash_bytes(std::as_bytes(tokens)).to_hex()).to_hex();
}

}  // namespace

void CachePins::expire() {
  const Clock::TimePoint now = clock_->now();
  std::erase_if(entries_, [&](const auto& item) {
    if (item.second.until > now) return false;
    pins_.erase(item.first);
    backend_->release(item.first);
    return true;
  });
}

void CachePins::keep(const TrunkOwner& owner, const std::string& key, std::vector<TokenId> tokens,
                     std::chrono::seconds ttl) {
  expire();
  tokens.resize(tokens.size() / kBlockSize * kBlockSize);
  if (pins_.max_bytes() == 0 || tokens.empty() || ttl.count() <= 0) return;
  const PinId pin = pin_of(owner, tokens);
  if (!key.empty()) {
    std::vector<PinId> covered;
    for (const auto& [other, entry] : entries_) {
      const bool is_beginning =
          other != pin && entry.key == key && entry.owner == owner &&
          entry.tokens.size() <= tokens.size() &&
          std::equal(entry.tokens.begin(), entry.tokens.end(), tokens.begin());
      if (is_beginning) covered.push_back(other);
    }
    for (const PinId& other : covered)
      drop(other);
  }
  if (entries_.size() >= kMaxEntries && !entries_.contains(pin)) {
    const auto soonest =
        std::ranges::min_element(entries_, {}, [](const auto& item) { return item.second.until; });
    drop(PinId(soonest->first));
  }
  entries_[pin] = Entry{owner, key, std::move(tokens), ttl, clock_->now() + ttl, ++num_asked_};
  ask(pin);
}

void CachePins::ask(const PinId& pin) {
  const Entry& entry = entries_.at(pin);
  KeepTrunk trunk{pin, entry.owner, entry.tokens, entry.ttl};
  backend_->keep(std::move(trunk),
                 [this, post = post_, pin, asked = entry.asked](const Result<KeptTrunk>& kept) {
                   post([this, pin, asked, kept] { on_kept(pin, asked, kept); });
                 });
}

void CachePins::on_kept(const PinId& pin, std::uint64_t asked, const Result<KeptTrunk>& kept) {
  const auto found = entries_.find(pin);
  if (found == entries_.end()) return backend_->release(pin);  // it was let go meanwhile
  if (found->second.asked != asked) return;  // another answer follows
  if (kept) {
    for (const std::string& victim :
         pins_.kept(pin, kept->num_tokens, kept->bytes, kept->trunk.to_hex()))
      drop(victim);
    return;
  }
  if (kept.error().code == Errc::kResourceExhausted) {
    if (const auto victim = pins_.make_room(pin)) {
      drop(*victim);
      return ask(pin);
    }
  }
  static const auto log = logger("http");
  log->debug("event=prompt_not_kept pin={} error=\"{}\"", pin, kept.error().message);
  drop(pin);
}

void CachePins::drop(const PinId& pin) {
  entries_.erase(pin);
  pins_.erase(pin);
  backend_->release(pin);
}

}  // namespace thaw::coalescer
