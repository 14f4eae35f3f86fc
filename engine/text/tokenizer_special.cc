#include "engine/text/tokenizer_special.h"

namespace thaw::text {

void SpecialTokens::add(std::string_view text, TokenId token, bool is_control) {
  starts_[static_cast<std::uint8_t>(text.front())] = true;
  std::uint32_t node = kRoot;
  for (const char byte : text) {
    const auto [it, is_new] =
        children_.try_emplace(edge(node, byte), static_cast<std::uint32_t>(nodes_.size()));
    if (is_new) nodes_.emplace_back();
    node = it->second;
  }
  TokenId& slot = is_control ? nodes_[node].control : nodes_[node].user_defined;
  if (slot < 0) slot = token;
  has_user_defined_ = has_user_defined_ || !is_control;
}

SpecialTokens::Match SpecialTokens::match_at(std::string_view text, std::size_t at,
                                             std::size_t control_end) const {
  Match best;
  const std::size_t limit = has_user_defined_ ? text.size() : control_end;
  std::uint32_t node = kRoot;
  for (std::size_t i = at; i < limit; ++i) {
    const auto it = children_.find(edge(node, text[i]));
    if (it == children_.end()) break;
    node = it->second;
    const TokenId token = nodes_[node].control >= 0 && i < control_end ? nodes_[node].control
                                                                       : nodes_[node].user_defined;
    if (token >= 0) best = {{at, i + 1}, token};
  }
  return best;
}

SpecialTokens::Match SpecialTokens::find(std::string_view text, std::size_t from,
                                         std::span<const ByteRange>& control_ranges) const {
  std::size_t at = from;
  while (at < text.size()) {
    while (!control_ranges.empty() && control_ranges.front().end <= at) {
      control_ranges = control_ranges.subspan(1);
    }
    // Up to `stop` the answer to "may a control token begin here" does not change.
    std::size_t stop = text.size();
    std::size_t control_end = 0;
    if (!control_ranges.empty()) {
      const ByteRange& range = control_ranges.front();
      const bool inside = range.begin <= at;
      stop = inside ? range.end : range.begin;
      control_end = inside ? range.end : 0;
    }
    if (control_end == 0 && !has_user_defined_) {
      at = stop;
      continue;
    }
    for (; at < stop; ++at) {
      if (!starts_[static_cast<std::uint8_t>(text[at])]) continue;
      const Match match = match_at(text, at, control_end);
      if (match.token >= 0) return match;
    }
  }
  return {};
}

TokenId SpecialTokens::find_exact(std::string_view text) const {
  std::uint32_t node = kRoot;
  for (const char byte : text) {
    const auto it = children_.find(edge(node, byte));
    if (it == children_.end()) return -1;
    node = it->second;
  }
  return nodes_[node].control >= 0 ? nodes_[node].control : nodes_[node].user_defined;
}

}  // namespace thaw::text
