#include "engine/text/tokenizer_unicode.h"

#include <algorithm>
#include <vector>

namespace thaw::text {
namespace {

struct ClassRange {
  std::uint32_t first;
  std::uint32_t last;
  CharClass value;
};

constexpr ClassRange kRanges[] = {
#include "engine/text/tokenizer_unicode_ranges.inc"
};

constexpr std::uint32_t kCodePoints = 0x110000;

constexpr ByteClasses make_byte_classes() {
  ByteClasses table{};
  for (int c = 0; c < 256; ++c) {
    CharClass value = kOther;
    if (c >= 0x80) {
      value = kNonAscii;
    } else if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) {
      value = kLetter;
    } else if (c >= '0' && c <= '9') {
      value = kNumber;
    } else if (c == '\r' || c == '\n') {
      value = kNewline;
    } else if (c == ' ' || (c >= '\t' && c <= '\r')) {
      value = kSpace;
    }
    table.of[c] = value;
  }
  return table;
}

// A flat table: CJK and other non-Latin text needs one load per character, and filling it takes
// some 50 µs once per process.
std::vector<CharClass> make_class_table() {
  std::vector<CharClass> table(kCodePoints, kOther);
  for (std::uint32_t c = 0; c < 0x80; ++c) {
    table[c] = kByteClass.of[c];
  }
  for (const ClassRange& range : kRanges) {
    std::fill(table.begin() + range.first, table.begin() + range.last + 1, range.value);
  }
  return table;
}

}  // namespace

constexpr ByteClasses kByteClass = make_byte_classes();

CharClass class_of(std::uint32_t code_point) {
  static const std::vector<CharClass> table = make_class_table();
  return code_point < kCodePoints ? table[code_point] : kOther;
}

Utf8Step decode_utf8(const char* at, const char* end) {
  const auto byte = [at](std::ptrdiff_t i) { return static_cast<std::uint8_t>(at[i]); };
  const std::uint8_t lead = byte(0);
  if (lead < 0x80) return {lead, 1, Utf8Step::Kind::kValid};

  // The second byte's limits exclude overlong forms, surrogates and code points over U+10FFFF.
  int length = 0;
  std::uint8_t low = 0x80;
  std::uint8_t high = 0xBF;
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
  } else {
    return {0, 1, Utf8Step::Kind::kInvalid};
  }

  std::uint32_t code_point = lead & (0x7F >> length);
  for (int i = 1; i < length; ++i) {
    if (at + i == end) {
      return {0, static_cast<std::uint8_t>(i), Utf8Step::Kind::kIncomplete};
    }
    if (byte(i) < low || byte(i) > high) {
      return {0, static_cast<std::uint8_t>(i), Utf8Step::Kind::kInvalid};
    }
    code_point = (code_point << 6) | (byte(i) & 0x3F);
    low = 0x80;
    high = 0xBF;
  }
  return {code_point, static_cast<std::uint8_t>(length), Utf8Step::Kind::kValid};
}

void drain_utf8(std::string& pending, bool final, std::string& out) {
  const char* at = pending.data();
  const char* const end = at + pending.size();
  while (at < end) {
    const Utf8Step step = decode_utf8(at, end);
    if (step.kind == Utf8Step::Kind::kIncomplete && !final) break;
    if (step.kind == Utf8Step::Kind::kValid) {
      out.append(at, step.length);
    } else {
      out += "\xEF\xBF\xBD";
    }
    at += step.length;
  }
  pending.erase(0, static_cast<std::size_t>(at - pending.data()));
}

}  // namespace thaw::text
