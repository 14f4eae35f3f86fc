#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace thaw::coalescer {

/// Finds stop strings in a growing text. Text goes through at once, except for an end that may
/// still become a stop string. The match that ends first wins, of two that end together the longer
/// one; so the outcome does not depend on how the text was cut into pieces.
class StopMatcher {
 public:
  /// REQUIRES: no stop string is empty.
  explicit StopMatcher(std::vector<std::string> stops);

  /// The text that is certain now. After a match everything is swallowed.
  std::string push(std::string_view text);

  /// What was held back, at the end of the text.
  std::string finish();

  /// The stop string that was found; it and what follows are not part of the output.
  const std::optional<std::string>& matched() const { return matched_; }

 private:
  std::vector<std::string> stops_;
  std::string held_;  // may become a stop string
  std::optional<std::string> matched_;
};

}  // namespace thaw::coalescer
