#include "engine/base/base64.h"

#include <algorithm>

#include <openssl/evp.h>

namespace thaw {
namespace {

// The library counts in int: pieces of whole groups of 3 bytes, 4 characters.
constexpr std::size_t kStepBytes = std::size_t{3} << 20;
constexpr std::size_t kStepCharacters = kStepBytes / 3 * 4;

}  // namespace

std::string encode_base64(std::span<const std::byte> bytes) {
  std::string text;
  text.reserve((bytes.size() + 2) / 3 * 4 + 1);
  while (!bytes.empty()) {
    const auto step = bytes.first(std::min(bytes.size(), kStepBytes));
    const std::size_t before = text.size();
    text.resize(before + (step.size() + 2) / 3 * 4 + 1);  // and a zero byte
    EVP_EncodeBlock(reinterpret_cast<unsigned char*>(text.data() + before),
                    reinterpret_cast<const unsigned char*>(step.data()),
                    static_cast<int>(step.size()));
    text.pop_back();
    bytes = bytes.subspan(step.size());
  }
  return text;
}

std::optional<std::vector<std::byte>> decode_base64(std::string_view text) {
  if (text.size() % 4 != 0) return std::nullopt;
  const std::size_t padding = text.ends_with("==") ? 2 : text.ends_with('=') ? 1 : 0;
  if (const std::size_t first = text.find('=');
      first != std::string_view::npos && first != text.size() - padding) {
    return std::nullopt;
  }
  std::vector<std::byte> bytes(text.size() / 4 * 3);
  for (std::size_t at = 0; at < text.size(); at += kStepCharacters) {
    const std::string_view step = text.substr(at, kStepCharacters);
    const int decoded = EVP_DecodeBlock(reinterpret_cast<unsigned char*>(bytes.data() + at / 4 * 3),
                                        reinterpret_cast<const unsigned char*>(step.data()),
                                        static_cast<int>(step.size()));
    if (decoded != static_cast<int>(step.size() / 4 * 3)) return std::nullopt;
  }
  bytes.resize(bytes.size() - padding);
  // The library skips white space, and spare bits may be anything: only one text is right.
  if (encode_base64(bytes) != text) return std::nullopt;
  return bytes;
}

}  // namespace thaw
