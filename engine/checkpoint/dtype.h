#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace thaw::checkpoint {

/// Element types of stored tensors. Values are our own, not GGUF's.
// NOLINTBEGIN(readability-identifier-naming): the formats' own names
enum class DType : std::uint8_t {
  kF32,
  kF16,
  kBF16,
  kQ8_0,
  kQ4_0,
  kQ4_1,
  kQ4_K,
  kQ6_K,
  kQ5_0,
  kQ5_1,
  kQ5_K,
  kQ2_K,
  kQ3_K,
  kIQ4_NL
};
// NOLINTEND(readability-identifier-naming)

/// "Q4_1" and so on.
std::string_view dtype_name(DType dtype);
/// Elements that one stored block holds (1 for plain types, 32 or 256 for quantised ones).
int dtype_block_elements(DType dtype);
/// Bytes of one stored block.
std::size_t dtype_block_bytes(DType dtype);

}  // namespace thaw::checkpoint
