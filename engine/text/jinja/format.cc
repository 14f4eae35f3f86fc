#include "engine/text/jinja/format.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <optional>

#include "engine/text/jinja/error.h"
#include "engine/text/jinja/print.h"
#include "engine/text/jinja/text_ops.h"
#include "engine/text/jinja/unicode.h"

namespace thaw::text::jinja {
namespace {

constexpr int kMaxWidth = 10'000;

/// How one value is laid out, in either kind of format string.
struct Spec {
  std::string fill = " ";
  char align = '\0';  ///< '<', '>', '^', '=' or none
  char sign = '-';  ///< '-', '+' or ' '
  bool alternate = false;
  bool grouped = false;
  int width = 0;
  int precision = -1;
  char type = '\0';
};

int read_number(std::string_view text, std::size_t& at) {
  int value = 0;
  while (at < text.size() && is_digit(text[at])) {
    value = value * 10 + (text[at++] - '0');
    if (value > kMaxWidth) throw TemplateError("a format's width or precision is too large");
  }
  return value;
}

std::string radix_digits(Int value, int base, bool upper) {
  auto rest =
      value < 0 ? -static_cast<unsigned __int128>(value) : static_cast<unsigned __int128>(value);
  const std::string_view symbols = upper ? "0123456789ABCDEF" : "0123456789abcdef";
  std::string digits;
  do {
    const auto digit = static_cast<std::size_t>(rest % static_cast<unsigned>(base));
    digits += symbols[digit];
    rest /= static_cast<unsigned>(base);
  } while (rest != 0);
  std::reverse(digits.begin(), digits.end());
  return digits;
}

/// Digits of a number without its sign.
std::string magnitude(const Value& value, const Spec& spec) {
  const char type = spec.type;
  if (type == 'x' || type == 'X' || type == 'o' || type == 'b') {
    const int base = type == 'o' ? 8 : type == 'b' ? 2 : 16;
    const std::string prefix = spec.alternate ? std::string("0") + type : "";
    return prefix + radix_digits(value.to_int(), base, type == 'X');
  }
  std::string digits;
  if (value.is_int() && (type == 'd' || type == '\0')) {
    digits = radix_digits(value.to_int(), 10, false);
  } else {
    const double number = std::abs(value.to_double());
    if (type == '\0' && spec.precision < 0) {
      digits = float_repr(number);
    } else {
      const double shown = type == '%' ? number * 100 : number;
      const std::string format = std::string("%.*") + (type == '%' || type == '\0' ? 'f' : type);
      const int precision = spec.precision < 0 ? 6 : spec.precision;
      const char* pattern = type == '\0' ? "%.*g" : format.c_str();
      const int size = std::snprintf(nullptr, 0, pattern, precision, shown);
      digits.resize(static_cast<std::size_t>(size) + 1);
      std::snprintf(digits.data(), digits.size(), pattern, precision, shown);
      digits.pop_back();
      if (type == '%') digits += '%';
    }
  }
  if (spec.grouped) {
    std::size_t whole = digits.find_first_not_of("0123456789");
    if (whole == std::string::npos) whole = digits.size();
    for (std::size_t at = whole; at > 3; at -= 3)
      digits.insert(at - 3, ",");
  }
  return digits;
}

Text lay_out(Text text, const Spec& spec, char default_align) {
  const char align = spec.align == '\0' ? default_align : spec.align;
  const Side fill = align == '<' ? Side::kRight : align == '^' ? Side::kBoth : Side::kLeft;
  if (align == '^') {  // format() centres with the odd space on the right, unlike str.center
    const auto length = static_cast<std::int64_t>(count_chars(text.bytes()));
    const std::int64_t left = std::max<std::int64_t>(0, spec.width - length) / 2;
    text = pad(text, length + left, spec.fill, Side::kLeft);
    return pad(text, spec.width, spec.fill, Side::kRight);
  }
  return pad(text, spec.width, spec.fill, fill);
}

Text format_number(const Value& value, const Spec& spec) {
  const bool integral = spec.type == 'd' || spec.type == 'x' || spec.type == 'X' ||
                        spec.type == 'o' || spec.type == 'b';
  if (!value.is_number() || (integral && !value.is_int())) {
    fail_type(std::string("format '") + spec.type + "' needs a number, not", value);
  }
  const bool negative = value.is_int() ? value.to_int() < 0 : value.to_double() < 0;
  std::string sign = negative ? "-" : "";
  if (!negative && spec.sign != '-') sign = std::string(1, spec.sign);
  std::string digits = magnitude(value, spec);
  if (spec.align == '=') {
    std::string filled;
    while (static_cast<int>(sign.size() + filled.size() + digits.size()) < spec.width)
      filled += spec.fill;
    digits.insert(0, filled);
  }
  return lay_out(Text(sign + digits, Origin::kUser), spec, '>');
}

Text format_text(Text text, const Spec& spec) {
  if (spec.precision >= 0) {
    text = text.range(0, byte_of_char(text.bytes(), static_cast<std::size_t>(spec.precision)));
  }
  return lay_out(std::move(text), spec, '<');
}

/// The specification after the colon of a field of str.format.
Spec parse_spec(std::string_view text) {
  Spec spec;
  std::size_t at = 0;
  const auto is_align = [](char c) { return c == '<' || c == '>' || c == '^' || c == '='; };
  const std::size_t first = text.empty() ? 0 : decode_at(text, 0).size;
  if (first < text.size() && is_align(text[first])) {
    spec.fill = text.substr(0, first);
    spec.align = text[first];
    at = first + 1;
  } else if (!text.empty() && is_align(text[0])) {
    spec.align = text[at++];
  }
  const auto take = [&](std::string_view accepted, char otherwise) {
    if (at >= text.size() || accepted.find(text[at]) == std::string_view::npos) return otherwise;
    return text[at++];
  };
  spec.sign = take("+- ", '-');
  spec.alternate = take("#", '\0') != '\0';
  if (take("0", '\0') != '\0' && spec.align == '\0') {
    spec.fill = "0";
    spec.align = '=';
  }
  spec.width = read_number(text, at);
  spec.grouped = take(",", '\0') != '\0';
  if (take(".", '\0') != '\0') spec.precision = read_number(text, at);
  spec.type = take("sdxXobfFeEgG%", '\0');
  if (at != text.size()) {
    throw TemplateError("unsupported format specification '" + std::string(text) + "'");
  }
  return spec;
}

Text format_value(const Value& value, std::string_view specification) {
  if (specification.empty()) return to_text(value);
  const Spec spec = parse_spec(specification);
  if (value.is_string()) {
    if (spec.type != '\0' && spec.type != 's') {
      throw TemplateError(std::string("Unknown format code '") + spec.type +
                          "' for object of type 'str'");
    }
    return format_text(*value.as_text(), spec);
  }
  if (value.is_number()) return format_number(value, spec);
  throw TemplateError("unsupported format string passed to " + value.type_name());
}

/// Walks the field names of one format string: numbers itself where they are left out.
class FieldLookup {
 public:
  explicit FieldLookup(const Args& args) : args_(args) {}

  Value find(std::string_view field) {
    const std::size_t name_end = std::min(field.find_first_of(".["), field.size());
    Value value = first(field.substr(0, name_end));
    for (std::size_t at = name_end; at < field.size();) {
      if (field[at] == '.') {
        const std::size_t end = std::min(field.find_first_of(".[", at + 1), field.size());
        value = get_attribute(value, field.substr(at + 1, end - at - 1));
        at = end;
      } else {
        const std::size_t end = field.find(']', at);
        if (end == std::string_view::npos) throw TemplateError("missing ']' in format string");
        const std::string key(field.substr(at + 1, end - at - 1));
        const bool is_index = !key.empty() && key.size() < 18 &&
                              key.find_first_not_of("0123456789") == std::string::npos;
        value = get_item(value, is_index ? Value::integer(std::atoll(key.c_str()))
                                         : Value::text(key, Origin::kUser));
        at = end + 1;
      }
    }
    return value;
  }

 private:
  Value first(std::string_view name) {
    if (name.find_first_not_of("0123456789") == std::string_view::npos) {
      const std::size_t index =
          name.empty() ? next_++ : std::strtoul(std::string(name).c_str(), nullptr, 10);
      if (index >= args_.positional.size()) {
        throw TemplateError("Replacement index " + std::to_string(index) +
                            " out of range for positional args tuple");
      }
      return args_.positional[index];
    }
    for (const auto& [key, value] : args_.named) {
      if (key == name) return value;
    }
    throw TemplateError("the format string names '" + std::string(name) +
                        "', which was not passed");
  }

  const Args& args_;
  std::size_t next_ = 0;
};

}  // namespace

Text format_braces(const Text& format, const Args& args) {
  const std::string_view bytes = format.bytes();
  FieldLookup fields(args);
  Text result;
  for (std::size_t at = 0; at < bytes.size();) {
    const std::size_t brace = std::min(bytes.find_first_of("{}", at), bytes.size());
    result.append_range(format, at, brace);
    if (brace == bytes.size()) break;
    at = brace + 1;
    if (at < bytes.size() && bytes[at] == bytes[brace]) {
      result.append_range(format, brace, brace + 1);
      ++at;
      continue;
    }
    if (bytes[brace] == '}') throw TemplateError("Single '}' encountered in format string");
    const std::size_t end = bytes.find('}', at);
    if (end == std::string_view::npos) throw TemplateError("expected '}' before end of string");
    std::string_view field = bytes.substr(at, end - at);
    at = end + 1;
    if (field.find('{') != std::string_view::npos) {
      throw TemplateError("nested fields in a format string are not supported");
    }
    const std::size_t colon = std::min(field.find(':'), field.size());
    const std::string_view spec =
        colon < field.size() ? field.substr(colon + 1) : std::string_view();
    field = field.substr(0, colon);
    char conversion = 's';
    if (field.size() >= 2 && field[field.size() - 2] == '!') {
      conversion = field.back();
      field.remove_suffix(2);
      if (conversion != 's' && conversion != 'r') {
        throw TemplateError("unsupported conversion in a format string");
      }
    }
    Value value = fields.find(field);
    if (conversion == 'r') {
      Text printed;
      append_repr(printed, value);
      value = Value::text(std::move(printed));
    }
    result.append(format_value(value, spec));
  }
  return result;
}

Text format_percent(const Text& format, const Value& values) {
  const std::string_view bytes = format.bytes();
  const Sequence* tuple = values.as_sequence();
  if (tuple != nullptr && tuple->flavor != Sequence::Flavor::kTuple) tuple = nullptr;
  std::size_t used = 0;
  const auto next = [&]() -> Value {
    if (tuple == nullptr && used == 0) return ++used, values;
    if (tuple == nullptr || used >= tuple->items.size()) {
      throw TemplateError("not enough arguments for format string");
    }
    return tuple->items[used++];
  };
  bool used_name = false;
  Text result;
  for (std::size_t at = 0; at < bytes.size();) {
    const std::size_t percent = std::min(bytes.find('%', at), bytes.size());
    result.append_range(format, at, percent);
    if (percent == bytes.size()) break;
    at = percent + 1;
    std::optional<Value> named;
    if (at < bytes.size() && bytes[at] == '(') {
      const std::size_t end = bytes.find(')', at);
      const Dict* dict = values.as_dict();
      if (end == std::string_view::npos) throw TemplateError("incomplete format key");
      if (dict == nullptr) throw TemplateError("format requires a mapping");
      const Value* found = dict->find(bytes.substr(at + 1, end - at - 1));
      if (found == nullptr) throw TemplateError("the format string names a key that is absent");
      named = *found;
      used_name = true;
      at = end + 1;
    }
    Spec spec;
    bool left = false;
    for (; at < bytes.size() && std::string_view("-+ #0").find(bytes[at]) < 5; ++at) {
      left = left || bytes[at] == '-';
      if (bytes[at] == '+' || (bytes[at] == ' ' && spec.sign != '+')) spec.sign = bytes[at];
      if (bytes[at] == '#') spec.alternate = true;
      if (bytes[at] == '0') spec.fill = "0";
    }
    spec.width = read_number(bytes, at);
    if (at < bytes.size() && bytes[at] == '.') spec.precision = read_number(bytes, ++at);
    if (at >= bytes.size()) throw TemplateError("incomplete format");
    const char type = bytes[at++];
    if (type == '%') {
      result.append_range(format, at - 1, at);
      continue;
    }
    const Value value = named ? *named : next();
    spec.align = left ? '<' : spec.fill == "0" ? '=' : '>';
    if (left) spec.fill = " ";
    if (type == 's' || type == 'r') {
      Text text;
      if (type == 's') {
        text = to_text(value);
      } else {
        append_repr(text, value);
      }
      spec.fill = " ";
      if (!left) spec.align = '>';
      result.append(format_text(std::move(text), spec));
    } else if (type == 'd' || type == 'i' || type == 'u') {
      spec.type = 'd';
      if (!value.is_number()) fail_type("%d format: a real number is required, not", value);
      const Value whole = value.is_int() ? value : Value::integer(truncate(value.to_double()));
      result.append(format_number(whole, spec));
    } else if (std::string_view("xXofFeEgG").find(type) != std::string_view::npos) {
      spec.type = type;
      result.append(format_number(value, spec));
    } else {
      throw TemplateError(std::string("unsupported format character '") + type + "'");
    }
  }
  if (!used_name && values.as_dict() == nullptr && used < (tuple ? tuple->items.size() : 1)) {
    throw TemplateError("not all arguments converted during string formatting");
  }
  return result;
}

}  // namespace thaw::text::jinja
