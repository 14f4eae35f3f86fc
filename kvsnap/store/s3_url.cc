#include "kvsnap/store/s3_url.h"

#include <algorithm>
#include <string_view>

namespace thaw::kvsnap {
namespace {

constexpr std::string_view kScheme = "s3://";
constexpr std::size_t kMinBucketBytes = 3;
constexpr std::size_t kMaxBucketBytes = 63;
constexpr std::size_t kMaxKeyBytes = 1024;

bool is_alnum(char c) {
  return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
}

bool is_bucket(std::string_view name) {
  if (name.size() < kMinBucketBytes || name.size() > kMaxBucketBytes) return false;
  if (!is_alnum(name.front()) || !is_alnum(name.back())) return false;
  return std::ranges::all_of(name, [](char c) { return is_alnum(c) || c == '.' || c == '-'; });
}

bool has_dot_part(std::string_view key) {
  while (true) {
    const std::size_t slash = key.find('/');
    const std::string_view part = key.substr(0, slash);
    if (part == "." || part == "..") return true;
    if (slash == std::string_view::npos) return false;
    key.remove_prefix(slash + 1);
  }
}

}  // namespace

bool is_s3_url(const std::string& text) {
  return text.starts_with(kScheme);
}

Result<S3Url> parse_s3_url(const std::string& text) {
  const auto wrong = [&](const std::string& what) {
    return make_error(Errc::kInvalidArgument, text + ": " + what);
  };
  const auto is_control = [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; };
  if (std::ranges::any_of(text, is_control))
    return make_error(Errc::kInvalidArgument, "an S3 URL has control characters");
  if (!is_s3_url(text)) return wrong("no S3 URL; s3://BUCKET/KEY is one");
  const std::size_t slash = text.find('/', kScheme.size());
  if (slash == std::string::npos || slash + 1 == text.size())
    return wrong("no key; s3://BUCKET/KEY has one");
  S3Url url{text.substr(kScheme.size(), slash - kScheme.size()), text.substr(slash + 1)};
  if (!is_bucket(url.bucket)) {
    return wrong("'" + url.bucket +
                 "' is no bucket's name: 3 to 63 of a-z, 0-9, '.' and '-', the first and the last "
                 "a letter or digit");
  }
  if (url.key.size() > kMaxKeyBytes) {
    return wrong("a key of " + std::to_string(url.key.size()) + " bytes; at most " +
                 std::to_string(kMaxKeyBytes) + " are right");
  }
  if (has_dot_part(url.key)) return wrong("no part of a key may be '.' or '..'");
  return url;
}

}  // namespace thaw::kvsnap
