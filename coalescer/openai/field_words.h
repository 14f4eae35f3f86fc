#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "coalescer/openai/json_fields.h"

namespace thaw::coalescer {

// What errors say would have been right.

/// `"a", "b" or "c"`
inline std::string list_of(std::span<const std::string_view> names, std::string_view quote,
                           std::string_view last) {
  std::string out;
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (i > 0) out += i + 1 == names.size() ? last : ", ";
    out.append(quote).append(names[i]).append(quote);
  }
  return out;
}

inline std::string whole_text(std::int64_t least, std::int64_t most) {
  if (most == kMaxInt64)
    return least == kMinInt64 ? "a whole number of 64 bits"
                              : "a whole number of at least " + std::to_string(least);
  if (least == most) return std::to_string(least);
  return "a whole number from " + std::to_string(least) + " to " + std::to_string(most);
}

}  // namespace thaw::coalescer
