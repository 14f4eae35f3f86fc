#pragma once

#include <string>
#include <string_view>

#include "engine/base/result.h"

namespace thaw {

/// Which device computes, as people write it: "cpu", "cuda" (the first GPU) or "cuda:N".
struct DeviceName {
  enum class Kind { kCpu, kCuda };
  Kind kind = Kind::kCpu;
  int ordinal = 0;  ///< among the GPUs that this process may see

  bool operator==(const DeviceName&) const = default;
};

/// Errors: kInvalidArgument, with what would be right.
Result<DeviceName> parse_device(std::string_view text);

}  // namespace thaw
