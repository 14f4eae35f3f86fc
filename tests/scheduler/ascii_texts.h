#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/token_texts.h"
#include "engine/grammar/service.h"

namespace thaw::scheduler {

/// Texts for models whose tokens mean nothing: one printable character each, from `first` on, then
/// pairs of them. `control` are control tokens.
inline std::shared_ptr<const TokenTexts> ascii_texts(int vocab_size, char first,
                                                     std::vector<TokenId> control) {
  constexpr int kPrintable = 95;
  const auto character = [](int number) { return static_cast<char>(' ' + number % kPrintable); };
  TokenTexts texts;
  for (int token = 0; token < vocab_size; ++token) {
    const int number = token + (first - ' ');
    if (number >= kPrintable) texts.bytes += character(number / kPrintable + 'a' - ' ' - 1);
    texts.bytes += character(number);
    texts.ends.push_back(static_cast<std::uint32_t>(texts.bytes.size()));
  }
  texts.control = std::move(control);
  return std::make_shared<const TokenTexts>(std::move(texts));
}

inline std::string regex_grammar(const std::string& pattern) {
  return R"({"type":"structural_tag","format":{"type":"regex","pattern":")" + pattern + R"("}})";
}

}  // namespace thaw::scheduler
