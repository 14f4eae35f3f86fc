#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "engine/base/result.h"

namespace thaw {

/// Which device computes, as people write it: "cpu", "cuda" (the first GPU), "cuda:N", or
/// "cuda:N,M,..." for several GPUs.
struct DeviceName {
  enum class Kind { kCpu, kCuda };
  Kind kind = Kind::kCpu;
  int ordinal = 0;  ///< among the GPUs that this process may see
  std::vector<int> more = {};  ///< those behind the first

  bool operator==(const DeviceName&) const = default;
};

/// Errors: kInvalidArgument, with what would be right.
Result<DeviceName> parse_device(std::string_view text);

/// As parse_device reads it.
std::string to_string(const DeviceName& device);

/// The devices of worker `worker` where each takes `size` of them: of a list the next ones in turn,
/// from the front again at its end; of a single GPU itself and, for a worker of several, those
/// after it. The CPU is everybody's.
DeviceName devices_of_worker(const DeviceName& all, unsigned worker, unsigned size);

}  // namespace thaw
