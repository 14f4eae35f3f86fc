#include "engine/text/tokenizer_split.h"

#include <algorithm>
#include <utility>

#include "engine/text/tokenizer_unicode.h"

namespace thaw::text {
namespace {

struct Char {
  CharClass value;
  int length;
};

Char decode_char(const char* at, const char* end) {
  const Utf8Step step = decode_utf8(at, end);
  return {step.kind == Utf8Step::Kind::kValid ? class_of(step.code_point) : kOther, step.length};
}

inline Char char_at(const char* at, const char* end) {
  const CharClass value = kByteClass.of[static_cast<std::uint8_t>(*at)];
  if (value != kNonAscii) return {value, 1};
  return decode_char(at, end);
}

inline bool is_space(CharClass value) {
  return value == kSpace || value == kNewline;
}

/// Skips characters that `accept` takes.
template <typename Accept>
inline const char* skip(const char* at, const char* end, Accept accept) {
  while (at < end) {
    const Char next = char_at(at, end);
    if (!accept(next.value)) break;
    at += next.length;
  }
  return at;
}

inline const char* skip_letters(const char* at, const char* end) {
  return skip(at, end, [](CharClass value) { return value == kLetter; });
}

struct SpaceRun {
  const char* end;  ///< past the run
  const char* last;  ///< its last character
  const char* after_newline;  ///< past its last \r or \n; null where it has none
};

SpaceRun scan_spaces(const char* at, const char* end) {
  SpaceRun run{at, at, nullptr};
  while (run.end < end) {
    const Char next = char_at(run.end, end);
    if (!is_space(next.value)) break;
    run.last = run.end;
    run.end += next.length;
    if (next.value == kNewline) run.after_newline = run.end;
  }
  return run;
}

/// Length of 's 't 're 've 'm 'll 'd at an apostrophe, 0 where there is none. Ignoring case takes
/// U+017F (long s) for an s.
template <bool kIgnoreCase>
inline std::ptrdiff_t contraction_length(const char* at, const char* end) {
  const auto letter = [](char c) {
    return kIgnoreCase && c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  };
  if (end - at < 2) return 0;
  const char first = letter(at[1]);
  if (first == 's' || first == 't' || first == 'm' || first == 'd') return 2;
  if (end - at < 3) return 0;
  const char second = letter(at[2]);
  if ((first == 'r' && second == 'e') || (first == 'v' && second == 'e') ||
      (first == 'l' && second == 'l')) {
    return 3;
  }
  if (kIgnoreCase && at[1] == '\xC5' && at[2] == '\xBF') return 3;
  return 0;
}

// gpt-2:  's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
// smollm: each digit alone, then the same on every piece between digits. A digit ends a piece, so
//         spaces before it are at the end of their text.
template <bool kDigitsApart>
std::size_t gpt2_length(std::string_view text) {
  const char* const begin = text.data();
  const char* const end = begin + text.size();
  const auto length_to = [begin](const char* to) { return static_cast<std::size_t>(to - begin); };
  const auto is_digit = [](CharClass value) { return value == kNumber || value == kDigitOnly; };

  if (*begin == '\'') {
    if (const auto length = contraction_length<false>(begin, end)) {
      return static_cast<std::size_t>(length);
    }
  }
  const char* const word = *begin == ' ' ? begin + 1 : begin;
  if (word < end) {
    const Char first = char_at(word, end);
    const char* const rest = word + first.length;
    if (first.value == kLetter) return length_to(skip_letters(rest, end));
    if (kDigitsApart && is_digit(first.value)) {
      return word == begin ? static_cast<std::size_t>(first.length) : 1;
    }
    if (first.value == kNumber) {
      return length_to(skip(rest, end, [](CharClass value) { return value == kNumber; }));
    }
    if (!is_space(first.value)) {
      return length_to(skip(rest, end, [](CharClass value) {
        return value == kOther || (!kDigitsApart && value == kDigitOnly);
      }));
    }
  }
  const SpaceRun run = scan_spaces(begin, end);
  const bool at_end = run.end == end || (kDigitsApart && is_digit(char_at(run.end, end).value));
  return length_to(at_end || run.last == begin ? run.end : run.last);
}

// (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,n}| ?[^\s\p{L}\p{N}]+[\r\n]*
// |\s*[\r\n]+|\s+(?!\S)|\s+        n = 3: llama-bpe, n = 1: qwen2
template <int kMaxDigits>
std::size_t llama_length(std::string_view text) {
  const char* const begin = text.data();
  const char* const end = begin + text.size();
  const auto length_to = [begin](const char* to) { return static_cast<std::size_t>(to - begin); };
  const auto is_other = [](CharClass value) { return value == kOther || value == kDigitOnly; };

  if (*begin == '\'') {
    if (const auto length = contraction_length<true>(begin, end)) {
      return static_cast<std::size_t>(length);
    }
  }
  const Char first = char_at(begin, end);
  const char* const rest = begin + first.length;
  if (first.value == kLetter) return length_to(skip_letters(rest, end));
  if (first.value == kNumber) {
    const char* at = rest;
    for (int count = 1; count < kMaxDigits && at < end; ++count) {
      const Char next = char_at(at, end);
      if (next.value != kNumber) break;
      at += next.length;
    }
    return length_to(at);
  }
  if (first.value != kNewline && rest < end) {
    const Char second = char_at(rest, end);
    if (second.value == kLetter) return length_to(skip_letters(rest + second.length, end));
  }
  const char* const marks = *begin == ' ' ? rest : begin;
  if (marks < end && is_other(char_at(marks, end).value)) {
    const char* const after = skip(marks, end, is_other);
    return length_to(skip(after, end, [](CharClass value) { return value == kNewline; }));
  }
  const SpaceRun run = scan_spaces(begin, end);
  if (run.after_newline != nullptr) return length_to(run.after_newline);
  return length_to(run.end == end || run.last == begin ? run.end : run.last);
}

constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

struct Rule {
  std::string_view name;
  PreTokenizer kind;
  PreTokenLength length;
  std::string_view patterns[2];  ///< the second may be empty
};

constexpr Rule kRules[] = {
    {"gpt-2", PreTokenizer::kGpt2, gpt2_length<false>, {kGpt2Pattern}},
    {"smollm", PreTokenizer::kSmollm, gpt2_length<true>, {R"(\p{N})", kGpt2Pattern}},
    {"llama-bpe",
     PreTokenizer::kLlamaBpe,
     llama_length<3>,
     {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
      R"(|\s*[\r\n]+|\s+(?!\S)|\s+)"}},
    {"qwen2",
     PreTokenizer::kQwen2,
     llama_length<1>,
     {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
      R"(|\s*[\r\n]+|\s+(?!\S)|\s+)"}},
    {"tekken",
     PreTokenizer::kTekken,
     nullptr,
     {R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)"
      R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N})"
      R"(| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)"}},
};

/// Other names that GGUF files have for the same rules.
constexpr std::pair<std::string_view, PreTokenizer> kAliases[] = {
    {"llama3", PreTokenizer::kLlamaBpe},        {"llama-v3", PreTokenizer::kLlamaBpe},
    {"falcon3", PreTokenizer::kLlamaBpe},       {"pixtral", PreTokenizer::kLlamaBpe},
    {"deepseek-r1-qwen", PreTokenizer::kQwen2},
};

}  // namespace

std::optional<PreTokenizer> pre_tokenizer_by_name(std::string_view name) {
  for (const Rule& rule : kRules) {
    if (rule.name == name) return rule.kind;
  }
  for (const auto& [alias, kind] : kAliases) {
    if (alias == name) return kind;
  }
  return std::nullopt;
}

std::string_view pre_tokenizer_names() {
  return "gpt-2, smollm, llama-bpe (llama3, llama-v3, falcon3, pixtral), qwen2 "
         "(deepseek-r1-qwen), tekken";
}

bool gguf_ignores_merges(std::string_view name) {
  return pre_tokenizer_by_name(name) == PreTokenizer::kLlamaBpe || name == "tekken";
}

bool gguf_normalizes_nfc(std::string_view name) {
  return pre_tokenizer_by_name(name) == PreTokenizer::kQwen2;
}

std::string_view pre_tokenizer_by_patterns(std::span<const std::string_view> patterns) {
  for (const Rule& rule : kRules) {
    const std::size_t count = rule.patterns[1].empty() ? 1 : 2;
    if (std::equal(patterns.begin(), patterns.end(), rule.patterns, rule.patterns + count)) {
      return rule.name;
    }
  }
  return {};
}

std::string_view gpt2_pattern() {
  return kGpt2Pattern;
}

std::string_view pre_tokenizer_pattern(PreTokenizer kind) {
  return kRules[static_cast<std::size_t>(kind)].patterns[0];
}

std::size_t space_run_word_length(std::string_view text) {
  const std::size_t word = text.find_first_not_of(' ');
  return std::min(word == std::string_view::npos ? word : text.find(' ', word), text.size());
}

std::size_t space_word_length(std::string_view text) {
  return std::min(text.find(' ', 1), text.size());
}

std::size_t whole_text_length(std::string_view text) {
  return text.size();
}

PreTokenLength pre_token_length(PreTokenizer kind) {
  return kRules[static_cast<std::size_t>(kind)].length;
}

}  // namespace thaw::text
