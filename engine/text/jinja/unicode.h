#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

// Python's view of a string over UTF-8 bytes. A byte that is no part of valid UTF-8 counts as one
// character, so nothing here fails on damaged text.
namespace thaw::text::jinja {

inline constexpr char32_t kInvalidByte = 0xFFFFFFFF;

struct CodePoint {
  char32_t value;  ///< kInvalidByte for a byte outside valid UTF-8
  std::size_t size;  ///< in bytes
};

/// The character at `position`, which must lie inside `text`.
CodePoint decode_at(std::string_view text, std::size_t position);
/// The character that ends before `position` > 0.
CodePoint decode_before(std::string_view text, std::size_t position);
void append_utf8(std::string& out, char32_t code_point);

/// Number of characters.
std::size_t count_chars(std::string_view text);
/// Byte position of character `index`, or size() where there are fewer.
std::size_t byte_of_char(std::string_view text, std::size_t index);

/// str.isspace, which is also `\s` in Python's re.
bool is_space(char32_t c);
/// What str.splitlines splits at.
bool is_line_break(char32_t c);
/// False for what repr() escapes.
bool is_printable(char32_t c);
bool is_alpha(char32_t c);
bool is_upper(char32_t c);
bool is_lower(char32_t c);
/// Simple case mapping of ASCII, Latin-1, Latin Extended-A, Greek and Cyrillic; others unchanged.
char32_t to_upper(char32_t c);
char32_t to_lower(char32_t c);

}  // namespace thaw::text::jinja
