#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace thaw {

/// CRC32C (Castagnoli, as in RFC 3720). `previous` is the checksum of the bytes before these, 0 for
/// none, so that pieces can be taken one after another.
std::uint32_t crc32c(std::span<const std::byte> data, std::uint32_t previous = 0);

/// Checksum of A followed by B, from those of A and B and the length of B.
std::uint32_t crc32c_combine(std::uint32_t crc_a, std::uint32_t crc_b, std::uint64_t size_b_bytes);

/// The same for many pieces B of one length: what depends on it alone is computed once.
class Crc32cCombiner {
 public:
  explicit Crc32cCombiner(std::uint64_t size_b_bytes);
  std::uint32_t operator()(std::uint32_t crc_a, std::uint32_t crc_b) const;

 private:
  std::uint32_t power_ = 0x80000000;  ///< x^(8 * size)
};

}  // namespace thaw
