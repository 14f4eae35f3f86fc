#include "engine/text/jinja/text_ops.h"

#include <algorithm>
#include <limits>
#include <string>

#include "engine/text/jinja/error.h"
#include "engine/text/jinja/unicode.h"
#include "engine/text/jinja/value.h"

namespace thaw::text::jinja {
namespace {

void push_part(std::vector<Text>& parts, Text part) {
  if (parts.size() >= kMaxWeight) throw TemplateError("a string was split into too many parts");
  parts.push_back(std::move(part));
}

bool is_one_of(std::string_view chars, std::string_view c) {
  for (std::size_t at = 0; at < chars.size();) {
    const std::size_t size = decode_at(chars, at).size;
    if (chars.substr(at, size) == c) return true;
    at += size;
  }
  return false;
}

/// Each character through `map`, which gets it and whether it starts a word, and appends to `out`.
template <typename StartsWord, typename Map>
Text map_chars(const Text& text, StartsWord&& starts_word, Map&& map) {
  Text result;
  bool at_start = true;
  text.for_each_run([&](std::string_view bytes, Origin origin) {
    std::string mapped;
    mapped.reserve(bytes.size());
    for (std::size_t at = 0; at < bytes.size();) {
      const CodePoint c = decode_at(bytes, at);
      if (c.value == kInvalidByte) {
        mapped += bytes[at];
      } else {
        map(mapped, c.value, at_start);
      }
      at_start = starts_word(c.value);
      at += c.size;
    }
    result.append(mapped, origin);
  });
  return result;
}

void put_upper(std::string& out, char32_t c) {
  if (c == 0xDF) {
    out += "SS";
  } else {
    append_utf8(out, to_upper(c));
  }
}

void put_title(std::string& out, char32_t c, bool at_start) {
  if (!at_start) {
    append_utf8(out, to_lower(c));
  } else if (c == 0xDF) {
    out += "Ss";
  } else {
    append_utf8(out, to_upper(c));
  }
}

bool never(char32_t) {
  return false;
}

}  // namespace

Text strip(const Text& text, std::optional<std::string_view> chars, Side side) {
  const std::string_view bytes = text.bytes();
  const auto goes = [&](std::size_t at, CodePoint c) {
    return chars ? is_one_of(*chars, bytes.substr(at, c.size)) : is_space(c.value);
  };
  std::size_t begin = 0;
  std::size_t end = bytes.size();
  while (side != Side::kRight && begin < end) {
    const CodePoint c = decode_at(bytes, begin);
    if (!goes(begin, c)) break;
    begin += c.size;
  }
  while (side != Side::kLeft && begin < end) {
    const CodePoint c = decode_before(bytes, end);
    if (!goes(end - c.size, c)) break;
    end -= c.size;
  }
  return text.range(begin, end);
}

std::vector<Text> split(const Text& text, std::string_view separator, std::int64_t limit) {
  std::vector<Text> parts;
  std::size_t begin = 0;
  while (limit-- != 0) {
    const std::size_t found = text.bytes().find(separator, begin);
    if (found == std::string::npos) break;
    push_part(parts, text.range(begin, found));
    begin = found + separator.size();
  }
  push_part(parts, text.range(begin, text.size()));
  return parts;
}

std::vector<Text> split_right(const Text& text, std::string_view separator, std::int64_t limit) {
  std::vector<Text> parts;
  std::size_t end = text.size();
  while (limit-- != 0 && end >= separator.size()) {
    const std::size_t found = text.bytes().rfind(separator, end - separator.size());
    if (found == std::string::npos) break;
    push_part(parts, text.range(found + separator.size(), end));
    end = found;
  }
  push_part(parts, text.range(0, end));
  std::reverse(parts.begin(), parts.end());
  return parts;
}

std::vector<Text> split_spaces(const Text& text, std::int64_t limit) {
  const std::string_view bytes = text.bytes();
  std::vector<Text> parts;
  std::size_t at = 0;
  while (true) {
    while (at < bytes.size() && is_space(decode_at(bytes, at).value)) {
      at += decode_at(bytes, at).size;
    }
    if (at >= bytes.size()) return parts;
    if (limit-- == 0) {
      push_part(parts, text.range(at, bytes.size()));
      return parts;
    }
    const std::size_t begin = at;
    while (at < bytes.size()) {
      const CodePoint c = decode_at(bytes, at);
      if (is_space(c.value)) break;
      at += c.size;
    }
    push_part(parts, text.range(begin, at));
  }
}

std::vector<Text> split_lines(const Text& text, bool keep_ends) {
  const std::string_view bytes = text.bytes();
  std::vector<Text> lines;
  std::size_t begin = 0;
  for (std::size_t at = 0; at < bytes.size();) {
    const CodePoint c = decode_at(bytes, at);
    std::size_t next = at + c.size;
    if (c.value != kInvalidByte && is_line_break(c.value)) {
      if (c.value == U'\r' && next < bytes.size() && bytes[next] == '\n') ++next;
      push_part(lines, text.range(begin, keep_ends ? next : at));
      begin = next;
    }
    at = next;
  }
  if (begin < bytes.size()) push_part(lines, text.range(begin, bytes.size()));
  return lines;
}

Text replace(const Text& text, std::string_view from, const Text& to, std::int64_t limit) {
  Text result;
  std::size_t begin = 0;
  if (from.empty()) {  // between all characters, and at both ends
    while (limit-- != 0) {
      result.append(to);
      if (begin >= text.size()) return result;
      const std::size_t end = begin + decode_at(text.bytes(), begin).size;
      result.append_range(text, begin, end);
      begin = end;
    }
  }
  while (!from.empty() && limit-- != 0) {
    const std::size_t found = text.bytes().find(from, begin);
    if (found == std::string::npos) break;
    result.append_range(text, begin, found);
    result.append(to);
    begin = found + from.size();
  }
  result.append_range(text, begin, text.size());
  return result;
}

Text reverse(const Text& text) {
  Text result;
  for (std::size_t end = text.size(); end > 0;) {
    const std::size_t begin = end - decode_before(text.bytes(), end).size;
    result.append_range(text, begin, end);
    end = begin;
  }
  return result;
}

Text upper(const Text& text) {
  return map_chars(text, never, [](std::string& out, char32_t c, bool) { put_upper(out, c); });
}

Text lower(const Text& text) {
  return map_chars(text, never,
                   [](std::string& out, char32_t c, bool) { append_utf8(out, to_lower(c)); });
}

Text capitalize(const Text& text) {
  return map_chars(text, never, put_title);
}

Text title(const Text& text, bool python) {
  return map_chars(
      text,
      [python](char32_t c) {
        if (python) return !is_alpha(c);
        return is_space(c) || c == U'-' || c == U'(' || c == U'{' || c == U'[' || c == U'<';
      },
      put_title);
}

Text pad(const Text& text, std::int64_t width, std::string_view fill, Side fill_side) {
  const auto length = static_cast<std::int64_t>(count_chars(text.bytes()));
  if (width <= length) return text;
  const std::int64_t missing = width - length;
  if (missing > static_cast<std::int64_t>(kMaxTextBytes)) {
    throw TemplateError("a padded string is too long");
  }
  std::int64_t left = fill_side == Side::kLeft ? missing : 0;
  // CPython's centring: the odd space goes left when the width is odd too.
  if (fill_side == Side::kBoth) left = missing / 2 + (missing & width & 1);
  Text result;
  for (std::int64_t i = 0; i < left; ++i)
    result.append(fill, Origin::kUser);
  result.append(text);
  for (std::int64_t i = left; i < missing; ++i)
    result.append(fill, Origin::kUser);
  return result;
}

}  // namespace thaw::text::jinja
