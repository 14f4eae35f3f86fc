// The hand-written pre-tokenizers against their regular expressions run by PCRE2.

#include "engine/text/tokenizer_split.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <memory>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "engine/text/tokenizer_unicode.h"
#include "tests/text/tokenizer_fixture.h"

namespace thaw::text {
namespace {

const char kGpt2[] =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
const char kLlama[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";
const char kQwen2Regex[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";

/// A pattern with PCRE2's own Unicode tables.
class Regex {
 public:
  explicit Regex(const char* pattern) {
    int error = 0;
    PCRE2_SIZE offset = 0;
    code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern), PCRE2_ZERO_TERMINATED,
                              PCRE2_UTF | PCRE2_UCP, &error, &offset, nullptr));
    EXPECT_NE(code_, nullptr) << pattern << ": error " << error << " at " << offset;
    data_.reset(pcre2_match_data_create_from_pattern(code_.get(), nullptr));
  }

  /// All of `text` cut into matches, and into what lies between them.
  std::vector<std::string> split(const std::string& text) const {
    std::vector<std::string> pieces;
    std::size_t at = 0;
    while (at < text.size()) {
      const int count = pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()),
                                    text.size(), at, 0, data_.get(), nullptr);
      const PCRE2_SIZE* range = pcre2_get_ovector_pointer(data_.get());
      const std::size_t begin = count > 0 ? range[0] : text.size();
      const std::size_t end = count > 0 ? range[1] : text.size();
      if (begin > at) pieces.push_back(text.substr(at, begin - at));
      if (end > begin) pieces.push_back(text.substr(begin, end - begin));
      at = end;
    }
    return pieces;
  }

  bool matches(const std::string& text) const {
    return pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), 0, 0,
                       data_.get(), nullptr) > 0;
  }

 private:
  struct Free {
    void operator()(pcre2_code* code) const { pcre2_code_free(code); }
    void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
  };
  std::unique_ptr<pcre2_code, Free> code_;
  std::unique_ptr<pcre2_match_data, Free> data_;
};

std::vector<std::string> our_split(PreTokenizer kind, std::string_view text) {
  const PreTokenLength length = pre_token_length(kind);
  std::vector<std::string> pieces;
  while (!text.empty()) {
    const std::size_t size = length(text);
    EXPECT_GT(size, 0u);
    if (size == 0 || size > text.size()) break;
    pieces.emplace_back(text.substr(0, size));
    text.remove_prefix(size);
  }
  return pieces;
}

std::vector<std::string> oracle_split(PreTokenizer kind, const std::string& text) {
  static const Regex digit("\\p{N}");
  static const Regex gpt2(kGpt2);
  static const Regex llama(kLlama);
  static const Regex qwen2(kQwen2Regex);
  if (kind == PreTokenizer::kLlamaBpe) return llama.split(text);
  if (kind == PreTokenizer::kQwen2) return qwen2.split(text);
  if (kind == PreTokenizer::kGpt2) return gpt2.split(text);
  std::vector<std::string> pieces;
  for (const std::string& piece : digit.split(text)) {
    for (std::string& word : gpt2.split(piece)) {
      pieces.push_back(std::move(word));
    }
  }
  return pieces;
}

CharClass pcre_class(std::uint32_t c) {
  static const Regex letter("^\\p{L}");
  static const Regex number("^\\p{N}");
  static const Regex space("^\\s");
  std::string text;
  append_utf8(text, c);
  if (letter.matches(text)) return kLetter;
  if (number.matches(text)) return kNumber;
  if (c == '\r' || c == '\n') return kNewline;
  return space.matches(text) ? kSpace : kOther;
}

bool is_surrogate(std::uint32_t c) {
  return c >= 0xD800 && c < 0xE000;
}

TEST(UnicodeClasses, DifferFromPcreOnlyWherePcreKnowsNoCharacter) {
  const Regex unassigned("^\\p{Cn}");
  int newer = 0;
  for (std::uint32_t c = 0; c < 0x110000; ++c) {
    if (is_surrogate(c) || pcre_class(c) == class_of(c)) continue;
    if (c == 0x180E) continue;  // a space to PCRE2's \s, to nobody's Unicode since 6.3
    std::string text;
    append_utf8(text, c);
    ASSERT_TRUE(unassigned.matches(text)) << "U+" << std::hex << c;
    ++newer;
  }
  EXPECT_LT(newer, 20000);
}

TEST(UnicodeClasses, KnowCharactersOfEveryKind) {
  EXPECT_EQ(class_of('a'), kLetter);
  EXPECT_EQ(class_of(0x6F22), kLetter);
  EXPECT_EQ(class_of(0x0301), kOther);  // a combining mark
  EXPECT_EQ(class_of(0x00BD), kNumber);
  EXPECT_EQ(class_of(0x11DE0), kDigitOnly);  // Unicode 17
  EXPECT_EQ(class_of(0x3000), kSpace);
  EXPECT_EQ(class_of(0x200B), kOther);  // zero width space is no \s
  EXPECT_EQ(class_of(0x1F600), kOther);
  EXPECT_EQ(class_of(0x110000), kOther);
}

class Split : public ::testing::TestWithParam<PreTokenizer> {};

// Characters that the rules name, and some of every class.
TEST_P(Split, EqualsItsRegexOnChosenCharacters) {
  const char* const kAlphabet[] = {
      " ",  " ", "\n", "\r",     "\t",     "'",      "s",      "S",      "t", "r",
      "e",  "v", "m",  "l",      "L",      "d",      "D",      "E",      "a", "Z",
      "1",  "2", "9",  ".",      "-",      "_",      "(",      "\u017F", "é", "\u0301",
      "漢", "½", "٣",  "\u00A0", "\u3000", "\u2028", "\u200D", "😀",      "#", "\u0085",
  };
  const unsigned seed = 4711;
  std::mt19937 random(seed);
  for (int round = 0; round < 60000; ++round) {
    std::string text;
    for (auto count = 1 + random() % 12; count > 0; --count) {
      text += kAlphabet[random() % std::size(kAlphabet)];
    }
    ASSERT_EQ(our_split(GetParam(), text), oracle_split(GetParam(), text))
        << nlohmann::json(text).dump() << " seed " << seed << " round " << round;
  }
}

TEST_P(Split, EqualsItsRegexOnRandomUnicode) {
  std::vector<std::uint32_t> known;  // to both tables alike
  for (std::uint32_t c = 0; c < 0x32000; ++c) {
    if (!is_surrogate(c) && pcre_class(c) == class_of(c)) known.push_back(c);
  }
  const unsigned seed = 815;
  std::mt19937 random(seed);
  for (int round = 0; round < 20000; ++round) {
    std::string text;
    for (auto count = 1 + random() % 24; count > 0; --count) {
      const auto kind = random() % 4;
      append_utf8(text, kind == 0   ? static_cast<std::uint32_t>(random() % 0x80)
                        : kind == 1 ? static_cast<std::uint32_t>(random() % 0x250)
                                    : known[random() % known.size()]);
    }
    ASSERT_EQ(our_split(GetParam(), text), oracle_split(GetParam(), text))
        << nlohmann::json(text).dump() << " seed " << seed << " round " << round;
  }
}

TEST_P(Split, TakesAnyBytes) {
  const unsigned seed = 99;
  std::mt19937 random(seed);
  for (int round = 0; round < 20000; ++round) {
    const std::string text = random_bytes(random, 12);
    std::string joined;
    for (const std::string& piece : our_split(GetParam(), text)) {
      joined += piece;
    }
    ASSERT_EQ(joined, text) << "seed " << seed << " round " << round;
  }
}

std::string split_name(const ::testing::TestParamInfo<PreTokenizer>& info) {
  constexpr const char* kNames[] = {"gpt2", "smollm", "llamabpe", "qwen2"};
  return kNames[static_cast<int>(info.param)];
}

INSTANTIATE_TEST_SUITE_P(All, Split,
                         ::testing::Values(PreTokenizer::kGpt2, PreTokenizer::kSmollm,
                                           PreTokenizer::kLlamaBpe, PreTokenizer::kQwen2),
                         split_name);

}  // namespace
}  // namespace thaw::text
