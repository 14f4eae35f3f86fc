#include "coalescer/openai/stop_matcher.h"

#include <algorithm>
#include <utility>

namespace thaw::coalescer {
namespace {

/// Length of the longest end of `text` that is a proper beginning of `stop`.
std::size_t held_length(std::string_view text, std::string_view stop) {
  std::size_t length = std::min(text.size(), stop.size() - 1);
  while (length > 0 && text.substr(text.size() - length) != stop.substr(0, length))
    --length;
  return length;
}

}  // namespace

StopMatcher::StopMatcher(std::vector<std::string> stops) : stops_(std::move(stops)) {}

std::string StopMatcher::push(std::string_view text) {
  if (matched_) return {};
  if (stops_.empty()) return std::string(text);
  held_ += text;

  const std::string* found = nullptr;
  std::size_t best_end = 0;
  for (const std::string& stop : stops_) {
    const std::size_t begin = held_.find(stop);
    if (begin == std::string::npos) continue;
    const std::size_t end = begin + stop.size();
    if (found == nullptr || end < best_end || (end == best_end && stop.size() > found->size())) {
      found = &stop;
      best_end = end;
    }
  }
  if (found != nullptr) {
    matched_ = *found;
    std::string certain = held_.substr(0, best_end - found->size());
    held_.clear();
    return certain;
  }

  std::size_t held = 0;
  for (const std::string& stop : stops_)
    held = std::max(held, held_length(held_, stop));
  std::string certain = held_.substr(0, held_.size() - held);
  held_.erase(0, certain.size());
  return certain;
}

std::string StopMatcher::finish() {
  return std::exchange(held_, {});
}

}  // namespace thaw::coalescer
