#pragma once

// Token ids against Hugging Face `tokenizers` on the lines of tests/data/tokenizer_lines.json.

#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

#include "tests/text/tokenizer_fixture.h"

namespace thaw::text {

inline std::string ids_hash(const std::vector<TokenId>& ids) {
  std::uint32_t value = 0x811C9DC5u;
  for (const TokenId id : ids) {
    for (int shift = 0; shift < 32; shift += 8) {
      value = (value ^ ((static_cast<std::uint32_t>(id) >> shift) & 0xFF)) * 0x01000193u;
    }
  }
  char text[9];
  std::snprintf(text, sizeof(text), "%08x", value);
  return text;
}

inline std::string describe(const std::string& line, const std::vector<TokenId>& ids) {
  return "line " + nlohmann::json(line).dump() + "\nour ids " + nlohmann::json(ids).dump();
}

inline std::vector<std::string> fixture_lines(std::size_t stride) {
  const auto all = read_fixture("tokenizer_lines.json").get<std::vector<std::string>>();
  std::vector<std::string> lines;
  for (std::size_t i = 0; i < all.size(); i += stride) {
    lines.push_back(all[i]);
  }
  return lines;
}

/// Every line with control tokens as text, then those that hold one with them matched.
inline void expect_parity(const Tokenizer& tokenizer, const nlohmann::json& expected) {
  const std::vector<std::string> lines = fixture_lines(expected.value("stride", std::size_t{1}));
  const std::string plain = expected.at("plain");
  const std::string special = expected.at("special");
  const auto special_lines = expected.at("special_lines").get<std::vector<std::size_t>>();
  ASSERT_EQ(plain.size(), 8 * lines.size());
  ASSERT_EQ(special.size(), 8 * special_lines.size());

  int different = 0;
  std::size_t tokens = 0;
  const auto check = [&](const std::string& line, bool parse_special, std::string_view hash) {
    const std::vector<TokenId> ids = tokenizer.encode(line, parse_special);
    if (!parse_special) tokens += ids.size();
    if (ids_hash(ids) == hash) return;
    if (++different <= 5) ADD_FAILURE() << describe(line, ids);
  };
  for (std::size_t i = 0; i < lines.size(); ++i) {
    check(lines[i], false, std::string_view(plain).substr(8 * i, 8));
  }
  EXPECT_EQ(tokens, expected.at("tokens").get<std::size_t>());
  ASSERT_GT(special_lines.size(), 50u);
  for (std::size_t i = 0; i < special_lines.size(); ++i) {
    check(lines.at(special_lines[i]), true, std::string_view(special).substr(8 * i, 8));
  }
  EXPECT_EQ(different, 0) << "lines whose ids differ";
}

}  // namespace thaw::text
