#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/base/result.h"

namespace thaw::cli {

/// What a server will take, part by part.
struct MemoryBudget {
  struct Part {
    std::string name;
    std::uint64_t bytes = 0;
  };
  std::vector<Part> parts;

  std::uint64_t total_bytes() const;
  /// "weights 92 MiB + KV 1.0 GiB + ... = 1.4 GiB".
  std::string to_string() const;
};

/// "1.5 GiB".
std::string format_bytes(std::uint64_t bytes);

/// Memory this process can still take: the kernel's MemAvailable, or less where a control group
/// says so.
Result<std::uint64_t> available_memory_bytes();

/// Error naming the parts where the budget exceeds `available_bytes`.
Result<void> check_fits(const MemoryBudget& budget, std::uint64_t available_bytes);

}  // namespace thaw::cli
