#include "engine/checkpoint/gguf_split.h"

#include <charconv>
#include <cstdio>
#include <string_view>

namespace thaw::checkpoint {
namespace {

constexpr std::size_t kDigits = 5;
constexpr std::string_view kBetween = "-of-";
constexpr std::string_view kExtension = ".gguf";
constexpr std::size_t kTail = 1 + kDigits + kBetween.size() + kDigits + kExtension.size();

std::optional<std::uint32_t> read_digits(std::string_view text) {
  std::uint32_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

}  // namespace

std::string SplitName::part_path(std::uint32_t number) const {
  char tail[kTail + 1];
  std::snprintf(tail, sizeof tail, "-%05u-of-%05u", number % 100000, count % 100000);
  return stem + tail + std::string(kExtension);
}

std::optional<SplitName> parse_split_name(const std::string& path) {
  if (path.size() <= kTail || !path.ends_with(kExtension)) return std::nullopt;
  const std::string_view tail = std::string_view(path).substr(path.size() - kTail);
  const auto part = read_digits(tail.substr(1, kDigits));
  const auto count = read_digits(tail.substr(1 + kDigits + kBetween.size(), kDigits));
  if (tail[0] != '-' || tail.substr(1 + kDigits, kBetween.size()) != kBetween || !part || !count ||
      *part < 1 || *part > *count) {
    return std::nullopt;
  }
  return SplitName{path.substr(0, path.size() - kTail), *part, *count};
}

}  // namespace thaw::checkpoint
