#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include <tsl/robin_map.h>

#include "engine/base/types.h"

namespace thaw::text {

/// Half-open range of bytes of a text.
struct ByteRange {
  std::size_t begin = 0;
  std::size_t end = 0;
};

/// Finds tokens that match as whole strings before BPE: control tokens, which only some ranges of a
/// text may hold, and user-defined tokens, which may be anywhere. Leftmost match, longest first.
class SpecialTokens {
 public:
  struct Match {
    ByteRange range;
    TokenId token = -1;  ///< -1: no match
  };

  /// REQUIRES: !text.empty(). Of two tokens with one text the first stays.
  void add(std::string_view text, TokenId token, bool is_control);

  /// First match at or after `from`. A control token matches only where one of `control_ranges`
  /// holds all of it; they are sorted, disjoint and not adjacent, and the ones that end at or
  /// before `from` are dropped from the span.
  Match find(std::string_view text, std::size_t from,
             std::span<const ByteRange>& control_ranges) const;

  /// The token whose text is exactly `text`, control tokens first; -1 where there is none.
  TokenId find_exact(std::string_view text) const;

 private:
  struct Node {
    TokenId control = -1;
    TokenId user_defined = -1;
  };
  static constexpr std::uint32_t kRoot = 0;

  static std::uint64_t edge(std::uint32_t node, char byte) {
    return (static_cast<std::uint64_t>(node) << 8) | static_cast<std::uint8_t>(byte);
  }
  /// Longest token that starts at `at`, control tokens only up to `control_end`.
  Match match_at(std::string_view text, std::size_t at, std::size_t control_end) const;

  bool has_user_defined_ = false;
  std::array<bool, 256> starts_{};  ///< bytes that begin a token
  std::vector<Node> nodes_{Node{}};
  tsl::robin_map<std::uint64_t, std::uint32_t> children_;
};

}  // namespace thaw::text
