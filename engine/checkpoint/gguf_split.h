#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace thaw::checkpoint {

/// Where a file stands in a model that was split over several: "name-00002-of-00003.gguf".
struct SplitName {
  std::string stem;  ///< path and name before "-00002"
  std::uint32_t part = 1;  ///< from 1 to `count`
  std::uint32_t count = 1;

  /// Path of another part.
  std::string part_path(std::uint32_t number) const;
};

/// Nothing where the name is not that of a part.
std::optional<SplitName> parse_split_name(const std::string& path);

}  // namespace thaw::checkpoint
