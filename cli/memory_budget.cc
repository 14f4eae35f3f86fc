#include "cli/memory_budget.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <fstream>
#include <optional>

namespace thaw::cli {
namespace {

constexpr std::array kUnits = {"B", "KiB", "MiB", "GiB", "TiB"};

std::optional<std::uint64_t> read_number(const std::string& path) {
  std::ifstream file(path);
  std::uint64_t value = 0;
  if (file >> value) return value;
  return std::nullopt;  // "max", or no such file
}

}  // namespace

std::uint64_t MemoryBudget::total_bytes() const {
  std::uint64_t total = 0;
  for (const Part& part : parts)
    total += part.bytes;
  return total;
}

std::string MemoryBudget::to_string() const {
  std::string text;
  for (const Part& part : parts) {
    if (!text.empty()) text += " + ";
    text += part.name + " " + format_bytes(part.bytes);
  }
  return text + " = " + format_bytes(total_bytes());
}

std::string format_bytes(std::uint64_t bytes) {
  auto value = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (value >= 1024 && unit + 1 < kUnits.size()) {
    value /= 1024;
    ++unit;
  }
  char text[32];
  std::snprintf(text, sizeof text, unit >= 3 ? "%.1f %s" : "%.0f %s", value, kUnits[unit]);
  return text;
}

Result<std::uint64_t> available_memory_bytes() {
  std::ifstream meminfo("/proc/meminfo");
  std::optional<std::uint64_t> available;
  std::string line;
  while (std::getline(meminfo, line)) {
    unsigned long long kib = 0;
    if (std::sscanf(line.c_str(), "MemAvailable: %llu kB", &kib) == 1) available = kib * 1024;
  }
  if (!available) return make_error(Errc::kIo, "cannot read MemAvailable from /proc/meminfo");
  const auto limit = read_number("/sys/fs/cgroup/memory.max");
  const auto used = read_number("/sys/fs/cgroup/memory.current");
  if (limit && used) available = std::min(*available, *limit - std::min(*limit, *used));
  return *available;
}

Result<void> check_fits(const MemoryBudget& budget, std::uint64_t available_bytes) {
  if (budget.total_bytes() <= available_bytes) return {};
  return make_error(Errc::kResourceExhausted,
                    "this needs " + budget.to_string() + ", but only " +
                        format_bytes(available_bytes) +
                        " are available; lower --kv-bytes, --arena-bytes or --workers");
}

}  // namespace thaw::cli
