#include "engine/base/device_name.h"

#include <charconv>

namespace thaw {

Result<DeviceName> parse_device(std::string_view text) {
  if (text == "cpu") return DeviceName{};
  if (text == "cuda") return DeviceName{DeviceName::Kind::kCuda, 0};
  constexpr std::string_view kPrefix = "cuda:";
  if (text.starts_with(kPrefix)) {
    const std::string number(text.substr(kPrefix.size()));
    const char* end = number.c_str() + number.size();
    DeviceName device{DeviceName::Kind::kCuda, -1};
    const auto read = std::from_chars(number.c_str(), end, device.ordinal);
    if (read.ec == std::errc() && read.ptr == end && device.ordinal >= 0) return device;
  }
  return make_error(Errc::kInvalidArgument,
                    "device '" + std::string(text) + "'; use cpu, cuda or cuda:N (N = 0, 1, ...)");
}

}  // namespace thaw
