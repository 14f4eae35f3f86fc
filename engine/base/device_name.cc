#include "engine/base/device_name.h"

#include <charconv>

namespace thaw {

Result<DeviceName> parse_device(std::string_view text) {
  if (text == "cpu") return DeviceName{};
  if (text == "cuda") return DeviceName{DeviceName::Kind::kCuda, 0};
  constexpr std::string_view kPrefix = "cuda:";
  constexpr std::size_t kMostDevices = 64;
  const auto wrong = [&] {
    return make_error(
        Errc::kInvalidArgument,
        "device '" + std::string(text) +
            "'; use cpu, cuda or cuda:N (N = 0, 1, ...), or cuda:N,M,... for several");
  };
  if (!text.starts_with(kPrefix)) return wrong();
  std::vector<int> ordinals;
  const char* at = text.data() + kPrefix.size();
  const char* const end = text.data() + text.size();
  while (true) {
    int ordinal = -1;
    const auto read = std::from_chars(at, end, ordinal);
    if (read.ec != std::errc() || ordinal < 0 || ordinals.size() == kMostDevices) return wrong();
    ordinals.push_back(ordinal);
    if (read.ptr == end) break;
    if (*read.ptr != ',') return wrong();
    at = read.ptr + 1;
  }
  return DeviceName{
      DeviceName::Kind::kCuda, ordinals.front(), {ordinals.begin() + 1, ordinals.end()}};
}

std::string to_string(const DeviceName& device) {
  if (device.kind == DeviceName::Kind::kCpu) return "cpu";
  std::string text = "cuda:" + std::to_string(device.ordinal);
  for (const int ordinal : device.more)
    text += "," + std::to_string(ordinal);
  return text;
}

DeviceName devices_of_worker(const DeviceName& all, unsigned worker, unsigned size) {
  if (all.kind == DeviceName::Kind::kCpu) return all;
  DeviceName devices{DeviceName::Kind::kCuda, 0};
  const auto at = [&](unsigned rank) {
    if (all.more.empty()) return all.ordinal + static_cast<int>(rank);
    const std::size_t index = (std::size_t{worker} * size + rank) % (all.more.size() + 1);
    return index == 0 ? all.ordinal : all.more[index - 1];
  };
  devices.ordinal = at(0);
  for (unsigned rank = 1; rank < size; ++rank)
    devices.more.push_back(at(rank));
  return devices;
}

}  // namespace thaw
