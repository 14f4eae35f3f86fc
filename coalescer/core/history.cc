#include "coalescer/core/history.h"

#include <algorithm>
#include <regex>
#include <unordered_map>

#include "coalescer/core/plan.h"
#include "coalescer/core/token_trie.h"

namespace thaw::coalescer {
namespace {

constexpr std::size_t kContextTokens = 24;  // text shown on each side of a divergence
constexpr std::size_t kMaxSharedWith = 8;
constexpr std::size_t kGramTokens = 16;  // shortest run that counts as identical text
constexpr std::uint32_t kAdviceTokens = 48;  // identical tokens behind a divergence worth a warning

std::span<const TokenId> slice(std::span<const TokenId> tokens, std::size_t begin,
                               std::size_t end) {
  begin = std::min(begin, tokens.size());
  return tokens.subspan(begin, std::min(end, tokens.size()) - begin);
}

std::uint64_t gram_hash(std::span<const TokenId> gram) {
  std::uint64_t hash = 1469598103934665603ULL;  // FNV-1a over tokens
  for (const TokenId token : gram) {
    hash = (hash ^ static_cast<std::uint32_t>(token)) * 1099511628211ULL;
  }
  return hash;
}

// Length of the longest run of tokens that stands in both, at any place; 0 if none reaches
// kGramTokens. Grams of one side at multiples of kGramTokens are looked up at every place of the
// other, so a run of at least 2 * kGramTokens - 1 is always found.
std::uint32_t longest_common_run(std::span<const TokenId> a, std::span<const TokenId> b) {
  if (a.size() < kGramTokens || b.size() < kGramTokens) return 0;
  std::unordered_multimap<std::uint64_t, std::size_t> grams;
  for (std::size_t i = 0; i + kGramTokens <= a.size(); i += kGramTokens) {
    const std::uint64_t hash = gram_hash(a.subspan(i, kGramTokens));
    if (grams.count(hash) < 4) grams.emplace(hash, i);  // repetitive text must not cost a square
  }
  std::size_t best = 0;
  for (std::size_t j = 0; j + kGramTokens <= b.size(); ++j) {
    const auto [first, last] = grams.equal_range(gram_hash(b.subspan(j, kGramTokens)));
    std::size_t longest_here = 0;
    for (auto gram = first; gram != last; ++gram) {
      const std::size_t forward = common_prefix(a.subspan(gram->second), b.subspan(j));
      std::size_t back = 0;
      while (back < gram->second && back < j && a[gram->second - back - 1] == b[j - back - 1])
        ++back;
      best = std::max(best, forward + back);
      longest_here = std::max(longest_here, forward);
    }
    if (longest_here > kGramTokens) j += longest_here - kGramTokens;  // already counted
  }
  return static_cast<std::uint32_t>(best);
}

// What the differing text looks like, in words for the advice.
std::string differing_kind(const std::string& here, const std::string& other) {
  static const std::regex uuid("[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-");
  static const std::regex date(
      "[0-9]{4}-[0-9]{2}|[0-9]{1,2}:[0-9]{2}|[0-9]{1,2} "
      "(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)");
  const auto starts = [&](const std::regex& pattern) {
    return std::regex_search(here.substr(0, 48), pattern) &&
           std::regex_search(other.substr(0, 48), pattern);
  };
  if (starts(uuid)) return "an id that changes with every call";
  if (starts(date)) return "a date or time";
  return "text of its own";
}

std::string advice_for(const Divergence& divergence, std::uint32_t prompt_tokens) {
  if (divergence.other_root) {
    return "The prompts agree beyond this point, but cache_salt differs, and nothing is "
           "ever "
           "shared across those: send the same cache_salt to share.";
  }
  if (divergence.identical_tokens_after < kAdviceTokens) return "";
  return std::to_string(divergence.identical_tokens_after) + " of " +
         std::to_string(prompt_tokens) +
         " tokens are identical in both prompts but come after token " +
         std::to_string(divergence.position) + ", where " +
         differing_kind(divergence.text_here, divergence.text_other) +
         " stands first. Put the shared text first and what differs behind it (for instance in the "
         "last "
         "message), and the shared text is prefilled once.";
}

}  // namespace

ForkHistory::ForkHistory(std::size_t capacity, std::size_t max_tokens, Detokenize detokenize)
    : capacity_(capacity), max_tokens_(max_tokens), detokenize_(std::move(detokenize)) {}

std::uint64_t ForkHistory::record(std::span<const GenerateRequest> window) {
  const std::scoped_lock lock(mutex_);
  const std::uint64_t number = next_window_++;
  for (const GenerateRequest& request : window) {
    entries_.push_back(
        {number, request.id, cache_key(request), request.tenant, request.model, request.prompt});
    total_tokens_ += request.prompt.size();
  }
  while (entries_.size() > capacity_ || (total_tokens_ > max_tokens_ && entries_.size() > 1)) {
    total_tokens_ -= entries_.front().prompt.size();
    entries_.pop_front();
  }
  return number;
}

std::optional<Explanation> ForkHistory::explain(RequestId request) const {
  const std::scoped_lock lock(mutex_);
  for (std::size_t i = entries_.size(); i-- > 0;) {
    if (entries_[i].request == request) return explain_locked(i);
  }
  return std::nullopt;
}

std::vector<ForkHistory::WindowExplanation> ForkHistory::recent(std::size_t count) const {
  const std::scoped_lock lock(mutex_);
  std::vector<WindowExplanation> windows;
  for (std::size_t i = entries_.size(); i-- > 0;) {
    if (windows.empty() || windows.back().window != entries_[i].window) {
      if (windows.size() == count) break;
      windows.push_back({entries_[i].window, {}});
    }
    windows.back().requests.push_back(explain_locked(i));
  }
  for (WindowExplanation& window : windows)
    std::reverse(window.requests.begin(), window.requests.end());
  return windows;
}

Explanation ForkHistory::explain_locked(std::size_t index) const {
  const Entry& self = entries_[index];
  Explanation explanation;
  explanation.request = self.request;
  explanation.prompt_tokens = static_cast<std::uint32_t>(self.prompt.size());

  // Requests of later windows cannot have been shared with; text of other tenants is never shown;
  // the tokens of another model mean something else.
  struct Candidate {
    const Entry* entry = nullptr;
    std::size_t shared = 0;
  };
  Candidate nearest;  // same cache key
  Candidate nearest_other;  // another salt or adapter
  for (std::size_t i = entries_.size(); i-- > 0;) {
    const Entry& other = entries_[i];
    if (i == index || other.window > self.window || other.tenant != self.tenant ||
        other.model != self.model)
      continue;
    const std::size_t shared = common_prefix(self.prompt, other.prompt);
    const bool same_key = other.key == self.key;
    Candidate& best = same_key ? nearest : nearest_other;
    if (best.entry == nullptr || shared > best.shared) best = {&other, shared};
    if (same_key && shared > 0) {
      explanation.shared_with.push_back({other.request, static_cast<std::uint32_t>(shared)});
    }
  }
  std::ranges::sort(explanation.shared_with, [](const SharedWith& a, const SharedWith& b) {
    return a.tokens != b.tokens ? a.tokens > b.tokens : a.request > b.request;
  });
  if (explanation.shared_with.size() > kMaxSharedWith)
    explanation.shared_with.resize(kMaxSharedWith);

  const bool other_root = nearest_other.entry != nullptr && nearest_other.shared > nearest.shared;
  const Candidate& chosen = other_root ? nearest_other : nearest;
  if (chosen.entry == nullptr || (!other_root && chosen.shared == self.prompt.size())) {
    return explanation;
  }
  const std::span<const TokenId> here = self.prompt;
  const std::span<const TokenId> there = chosen.entry->prompt;
  // With another root nothing at all is shared: the prompts part before their first token.
  const std::size_t position = other_root ? 0 : chosen.shared;
  Divergence divergence;
  divergence.other = chosen.entry->request;
  divergence.position = static_cast<std::uint32_t>(position);
  divergence.other_root = other_root;
  divergence.text_before =
      detokenize_(self.model, slice(here, position - std::min(position, kContextTokens), position));
  divergence.text_here = detokenize_(self.model, slice(here, position, position + kContextTokens));
  divergence.text_other =
      detokenize_(self.model, slice(there, position, position + kContextTokens));
  divergence.identical_tokens_after =
      longest_common_run(here.subspan(position), there.subspan(position));
  divergence.advice = advice_for(divergence, explanation.prompt_tokens);
  explanation.parted = std::move(divergence);
  return explanation;
}

}  // namespace thaw::coalescer
