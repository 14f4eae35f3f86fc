#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

#include "engine/grammar/grammar.h"

namespace thaw::grammar {

// Tokens 0 to 255 are the bytes; some longer ones follow, then control tokens.
inline constexpr std::string_view kWords[] = {
    "{\"",   "\": ",  "\", \"", "\"}",      " the",
    "true",  "false", "null",   "[",        "]}",
    "12",    "0.5",   "name",   "\xc3\xa9", "\xf0\x9f\x98\x80",
    "\\u00", "<tool", "_call>", "ab",       "\n\n"};
inline constexpr TokenId kFirstWord = 256;
inline constexpr TokenId kEnd = kFirstWord + static_cast<TokenId>(std::size(kWords));
inline constexpr TokenId kTurn = kEnd + 1;
inline constexpr TokenId kNameless = kEnd + 2;
inline constexpr int kVocabSize = kEnd + 13;  // the last ten have no texts, as padded logits

inline TokenTexts small_texts() {
  TokenTexts texts;
  const auto add = [&texts](std::string_view text) {
    texts.bytes += text;
    texts.ends.push_back(static_cast<std::uint32_t>(texts.bytes.size()));
  };
  for (int byte = 0; byte < 256; ++byte)
    add(std::string(1, static_cast<char>(byte)));
  for (const std::string_view word : kWords)
    add(word);
  add("<|end|>");
  add("<|turn|>");
  add("");
  texts.control = {kEnd, kTurn, kNameless};
  return texts;
}

inline std::shared_ptr<const Vocabulary> small_vocabulary() {
  static const std::shared_ptr<const Vocabulary> made =
      make_vocabulary(small_texts(), kVocabSize, std::vector<TokenId>{kEnd}).value();
  return made;
}

inline std::string tag(const std::string& format) {
  return R"({"type":"structural_tag","format":)" + format + "}";
}
inline std::string schema(const std::string& json_schema) {
  return tag(R"({"type":"json_schema","json_schema":)" + json_schema + "}");
}

inline Result<std::shared_ptr<const Grammar>> compile(const std::string& document,
                                                      const CompileLimits& limits = {}) {
  return small_vocabulary()->compile(document, limits);
}

inline std::vector<std::uint32_t> mask_of(Matcher& matcher) {
  std::vector<std::uint32_t> mask(mask_words(kVocabSize));
  const auto filled = matcher.fill(mask);
  EXPECT_TRUE(filled) << filled.error().message;
  return mask;
}

inline bool may_end(Matcher& matcher) {
  return allows(mask_of(matcher), kEnd);
}

/// How many bytes of `text` may come, one token a byte; every mask must agree with its accept().
inline std::size_t walk(Matcher& matcher, std::string_view text) {
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto token = static_cast<TokenId>(static_cast<unsigned char>(text[i]));
    const bool allowed = allows(mask_of(matcher), token);
    EXPECT_EQ(static_cast<bool>(matcher.accept(token)), allowed) << text << " at " << i;
    if (!allowed) return i;
  }
  return text.size();
}

/// Whether `text` is one of `document`'s.
inline bool matches(const std::string& document, std::string_view text) {
  const auto grammar = compile(document);
  EXPECT_TRUE(grammar) << grammar.error().message;
  if (!grammar) return false;
  const auto matcher = (*grammar)->start({});
  return walk(*matcher, text) == text.size() && may_end(*matcher);
}

}  // namespace thaw::grammar
