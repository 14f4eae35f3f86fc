#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace thaw::text {

/// What the pre-tokenizers' regular expressions can tell apart about a character.
enum CharClass : std::uint8_t {
  kOther,
  kLetter,  ///< \p{L}
  kNumber,  ///< \p{N}
  kDigitOnly,  ///< a digit to Hugging Face's `Digits` but too new for its \p{N}
  kSpace,  ///< \s without \r and \n
  kNewline,  ///< \r, \n
  kNonAscii,  ///< only in kByteClass: decode the character first
};

/// One step through UTF-8. Invalid bytes come in the maximal pieces that Unicode recommends to
/// replace by one U+FFFD each (as Python's errors="replace" does).
struct Utf8Step {
  enum class Kind : std::uint8_t { kValid, kInvalid, kIncomplete };
  std::uint32_t code_point = 0;
  std::uint8_t length = 0;  ///< bytes taken
  Kind kind = Kind::kValid;
};

/// Decodes at `at`. REQUIRES: at < end. `kIncomplete`: the text ends inside a character so far
/// valid.
Utf8Step decode_utf8(const char* at, const char* end);

/// Moves the text that is complete from the front of `pending` to `out`, invalid bytes as U+FFFD;
/// with `final` an incomplete end is replaced as well and nothing stays.
void drain_utf8(std::string& pending, bool final, std::string& out);

/// Class of a code point, from a table of one byte each.
CharClass class_of(std::uint32_t code_point);

/// Class of each byte below 0x80, kNonAscii above.
struct ByteClasses {
  CharClass of[256];
};
extern const ByteClasses kByteClass;

}  // namespace thaw::text
