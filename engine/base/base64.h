#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace thaw {

/// With padding, on one line (RFC 4648).
std::string encode_base64(std::span<const std::byte> bytes);
/// Nothing where `text` is not what encode_base64() gives.
std::optional<std::vector<std::byte>> decode_base64(std::string_view text);

}  // namespace thaw
