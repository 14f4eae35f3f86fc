#include "engine/base/base64.h"

#include <random>

#include <gtest/gtest.h>

namespace thaw {
namespace {

std::vector<std::byte> bytes_of(std::string_view text) {
  const auto bytes = std::as_bytes(std::span(text.data(), text.size()));
  return {bytes.begin(), bytes.end()};
}

TEST(Base64, IsWhatTheStandardSays) {
  const std::pair<const char*, const char*> known[] = {{"", ""},
                                                       {"f", "Zg=="},
                                                       {"fo", "Zm8="},
                                                       {"foo", "Zm9v"},
                                                       {"foob", "Zm9vYg=="},
                                                       {"fooba", "Zm9vYmE="},
                                                       {"foobar", "Zm9vYmFy"}};
  for (const auto& [text, encoded] : known) {
    EXPECT_EQ(encode_base64(bytes_of(text)), encoded);
    EXPECT_EQ(decode_base64(encoded), bytes_of(text)) << encoded;
  }
}

TEST(Base64, ComesBackWhateverItsLength) {
  std::mt19937 random(1);
  for (const std::size_t size : {1UL, 57UL, 3UL << 20, (3UL << 20) + 1, (6UL << 20) + 2}) {
    std::vector<std::byte> bytes(size);
    for (std::byte& byte : bytes)
      byte = static_cast<std::byte>(random());
    EXPECT_TRUE(decode_base64(encode_base64(bytes)) == bytes) << size;
  }
}

TEST(Base64, NothingElseIsTaken) {
  for (const char* text :
       {"Zg=", "Zg", "Zg==Zg==", "Z===", "====", "Zm9!", "Zh==", " Zg=", "Zm9v\n"})
    EXPECT_FALSE(decode_base64(text)) << text;
}

}  // namespace
}  // namespace thaw
