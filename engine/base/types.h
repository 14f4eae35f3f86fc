#pragma once

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace thaw {

/// Index into a model's vocabulary; never negative in a valid sequence.
using TokenId = std::int32_t;

/// Index of a block in a worker's KV pool.
using BlockId = std::int32_t;

/// Names a request from the server down to its worker; unique while the server process lives.
using RequestId = std::uint64_t;

/// Tokens in one KV block.
inline constexpr int kBlockSize = 16;

/// A 128-bit digest: a cache root, a chained block hash, a weights digest.
struct Hash128 {
  std::array<std::uint8_t, 16> bytes{};

  auto operator<=>(const Hash128&) const = default;
  /// 32 lower-case hex digits.
  std::string to_hex() const;
};

/// Hash functor for maps keyed by Hash128 (the bytes are already uniformly distributed).
struct Hash128Hasher {
  std::size_t operator()(const Hash128& hash) const noexcept {
    std::size_t value = 0;
    for (int i = 0; i < 8; ++i)
      value |= static_cast<std::size_t>(hash.bytes[i]) << (8 * i);
    return value;
  }
};

}  // namespace thaw
