#include "forkpool/recent_trunks.h"

#include <algorithm>

namespace thaw::forkpool {
namespace {

constexpr std::size_t kMaxEntries = 256;
constexpr std::size_t kMaxTokensInAll = std::size_t{8} << 20;

std::size_t common_tokens(const std::vector<TokenId>& a, const std::vector<TokenId>& b) {
  const auto [end, other] = std::ranges::mismatch(a, b);
  return static_cast<std::size_t>(end - a.begin()) / kBlockSize * kBlockSize;
}

}  // namespace

void RecentTrunks::note(const GenerateRequest& request, std::uint32_t min_tokens) {
  const std::size_t whole = request.prompt.size() / kBlockSize * kBlockSize;
  if (whole < std::max<std::size_t>(min_tokens, kBlockSize)) return;
  Entry entry;
  entry.owner = trunk_owner(request);
  entry.token_ids.assign(request.prompt.begin(),
                         request.prompt.begin() + static_cast<std::ptrdiff_t>(whole));
  auto nearest = entries_.end();
  std::size_t common = 0;
  for (auto other = entries_.begin(); other != entries_.end(); ++other) {
    if (other->owner != entry.owner) continue;
    const std::size_t tokens = common_tokens(other->token_ids, entry.token_ids);
    if (tokens <= common) continue;
    nearest = other;
    common = tokens;
  }
  if (nearest == entries_.end() || common < min_tokens) {
    entries_.push_front(std::move(entry));
    return trim();
  }
  entries_.splice(entries_.begin(), entries_, nearest);
  ++nearest->uses;
  if (common == entry.token_ids.size()) return;  // nothing that is new
  const bool goes_on = common == nearest->token_ids.size() && !nearest->shared;
  if (goes_on) {
    nearest->token_ids = std::move(entry.token_ids);
    return trim();
  }
  if (common < nearest->token_ids.size()) {
    nearest->token_ids.resize(common);
    nearest->written_tokens = std::min<std::uint64_t>(nearest->written_tokens, common);
  }
  nearest->shared = true;
  if (entry.token_ids.size() - common >= min_tokens) entries_.push_front(std::move(entry));
  trim();
}

void RecentTrunks::trim() {
  std::size_t tokens = 0;
  std::size_t count = 0;
  for (auto entry = entries_.begin(); entry != entries_.end();) {
    tokens += entry->token_ids.size();
    ++count;
    // The newest stays, however long it is.
    const bool too_many = count > 1 && (count > kMaxEntries || tokens > kMaxTokensInAll);
    entry = too_many ? entries_.erase(entry) : std::next(entry);
  }
}

}  // namespace thaw::forkpool
