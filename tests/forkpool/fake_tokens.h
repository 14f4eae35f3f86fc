#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine/base/types.h"

namespace thaw::forkpool {

/// What the fake engine answers: a function of prompt, seed, choice and position alone, so a
/// resumed stream is right only if every token of it is.
inline TokenId fake_token(const std::vector<TokenId>& prompt, std::uint64_t seed,
                          std::uint32_t choice, std::uint32_t index) {
  std::uint64_t value = seed * 0x9E3779B97F4A7C15ULL + choice;
  for (const TokenId token : prompt)
    value = (value ^ static_cast<std::uint64_t>(token)) * 0x100000001B3ULL;
  value = (value + index) * 0xBF58476D1CE4E5B9ULL;
  return static_cast<TokenId>((value ^ (value >> 31)) % 50000);
}

/// first, first + 1, ...
inline std::vector<TokenId> counted(std::size_t count, TokenId first = 0) {
  std::vector<TokenId> tokens(count);
  for (std::size_t i = 0; i < count; ++i)
    tokens[i] = first + static_cast<TokenId>(i);
  return tokens;
}

}  // namespace thaw::forkpool
