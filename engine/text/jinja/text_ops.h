#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "engine/text/jinja/text.h"

// Python's string operations on text that keeps its origins; shared by filters and methods.
namespace thaw::text::jinja {

inline bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

enum class Side { kBoth, kLeft, kRight };

/// Without the characters of `chars` (whitespace when absent) at the ends.
Text strip(const Text& text, std::optional<std::string_view> chars, Side side);
/// Parts between separators; `limit` splits at most, negative for all. REQUIRES: separator not
/// empty.
std::vector<Text> split(const Text& text, std::string_view separator, std::int64_t limit);
/// The same, counting from the right.
std::vector<Text> split_right(const Text& text, std::string_view separator, std::int64_t limit);
/// Parts between runs of whitespace.
std::vector<Text> split_spaces(const Text& text, std::int64_t limit);
std::vector<Text> split_lines(const Text& text, bool keep_ends);
Text replace(const Text& text, std::string_view from, const Text& to, std::int64_t limit);
Text reverse(const Text& text);
Text upper(const Text& text);
Text lower(const Text& text);
Text capitalize(const Text& text);
/// str.title when `python`; else Jinja's filter, where only space and brackets start a word.
Text title(const Text& text, bool python);
/// `width` characters wide with `fill` around it, as str.center (kBoth), rjust (kLeft: fill on the
/// left) and ljust do it.
Text pad(const Text& text, std::int64_t width, std::string_view fill, Side fill_side);

}  // namespace thaw::text::jinja
