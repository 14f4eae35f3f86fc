#include "engine/text/jinja/print.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>

#include "engine/text/jinja/error.h"
#include "engine/text/jinja/runtime.h"
#include "engine/text/jinja/sort.h"
#include "engine/text/jinja/unicode.h"

namespace thaw::text::jinja {
namespace {

std::string hex(char32_t value, const char* format) {
  char buffer[16];
  std::snprintf(buffer, sizeof(buffer), format, static_cast<unsigned>(value));
  return buffer;
}

void append_string_repr(Text& out, const Text& text) {
  const bool has_single = text.bytes().find('\'') != std::string::npos;
  const bool has_double = text.bytes().find('"') != std::string::npos;
  const char quote = has_single && !has_double ? '"' : '\'';
  out.append(std::string_view(&quote, 1), Origin::kUser);
  text.for_each_run([&](std::string_view bytes, Origin origin) {
    std::string escaped;
    escaped.reserve(bytes.size());
    for (std::size_t at = 0; at < bytes.size();) {
      const CodePoint c = decode_at(bytes, at);
      if (c.value == U'\\' || c.value == static_cast<char32_t>(quote)) {
        escaped += '\\';
        escaped += bytes[at];
      } else if (c.value == U'\n') {
        escaped += "\\n";
      } else if (c.value == U'\r') {
        escaped += "\\r";
      } else if (c.value == U'\t') {
        escaped += "\\t";
      } else if (c.value == kInvalidByte || is_printable(c.value)) {
        escaped += bytes.substr(at, c.size);
      } else {
        escaped += hex(c.value, c.value < 0x100     ? "\\x%02x"
                                : c.value < 0x10000 ? "\\u%04x"
                                                    : "\\U%08x");
      }
      at += c.size;
    }
    out.append(escaped, origin);
  });
  out.append(std::string_view(&quote, 1), Origin::kUser);
}

void append_items(Text& out, const std::vector<Value>& items) {
  for (std::size_t i = 0; i < items.size(); ++i) {
    if (i > 0) out.append(", ", Origin::kUser);
    append_repr(out, items[i]);
  }
}

void append_sequence(Text& out, const Sequence& sequence) {
  using Flavor = Sequence::Flavor;
  const auto wrapped = [&](const char* open, const char* close) {
    out.append(open, Origin::kUser);
    append_items(out, sequence.items);
    out.append(close, Origin::kUser);
  };
  switch (sequence.flavor) {
    case Flavor::kList:
      return wrapped("[", "]");
    case Flavor::kTuple:
      return wrapped("(", sequence.items.size() == 1 ? ",)" : ")");
    case Flavor::kKeys:
      return wrapped("dict_keys([", "])");
    case Flavor::kValues:
      return wrapped("dict_values([", "])");
    case Flavor::kItems:
      return wrapped("dict_items([", "])");
    case Flavor::kRange: {
      // Only a range's items are kept; its arguments follow from them.
      const auto& items = sequence.items;
      const Int first = items.empty() ? 0 : items.front().to_int();
      const Int step = items.size() > 1 ? items[1].to_int() - first : 1;
      const Int stop = first + step * static_cast<Int>(items.size());
      std::string text = "range(" + int_repr(first) + ", " + int_repr(stop);
      if (step != 1) text += ", " + int_repr(step);
      return out.append(text + ")", Origin::kUser);
    }
    case Flavor::kIterator:
      return out.append("<generator object>", Origin::kUser);
  }
}

void append_entries(Text& out, const std::vector<std::pair<Value, Value>>& entries) {
  out.append("{", Origin::kUser);
  for (std::size_t i = 0; i < entries.size(); ++i) {
    if (i > 0) out.append(", ", Origin::kUser);
    append_repr(out, entries[i].first);
    out.append(": ", Origin::kUser);
    append_repr(out, entries[i].second);
  }
  out.append("}", Origin::kUser);
}

void append_json_string(Text& out, const Text& text, bool ensure_ascii) {
  out.append("\"", Origin::kUser);
  text.for_each_run([&](std::string_view bytes, Origin origin) {
    std::string escaped;
    std::size_t plain = 0;  // start of what needs no escape
    const auto flush = [&](std::size_t end) { escaped += bytes.substr(plain, end - plain); };
    for (std::size_t at = 0; at < bytes.size();) {
      const auto byte = static_cast<unsigned char>(bytes[at]);
      if (byte >= 0x20 && byte != '"' && byte != '\\' && (byte < 0x80 || !ensure_ascii)) {
        ++at;
        continue;
      }
      flush(at);
      const CodePoint c = decode_at(bytes, at);
      switch (c.value) {
        case U'"':
          escaped += "\\\"";
          break;
        case U'\\':
          escaped += "\\\\";
          break;
        case U'\n':
          escaped += "\\n";
          break;
        case U'\r':
          escaped += "\\r";
          break;
        case U'\t':
          escaped += "\\t";
          break;
        case U'\b':
          escaped += "\\b";
          break;
        case U'\f':
          escaped += "\\f";
          break;
        case kInvalidByte:
          escaped += "\\ufffd";
          break;
        default:
          if (c.value < 0x10000) {
            escaped += hex(c.value, "\\u%04x");
          } else {
            escaped += hex(0xD800 + ((c.value - 0x10000) >> 10), "\\u%04x");
            escaped += hex(0xDC00 + ((c.value - 0x10000) & 0x3FF), "\\u%04x");
          }
      }
      at += c.size;
      plain = at;
    }
    if (plain == 0) return out.append(bytes, origin);
    flush(bytes.size());
    out.append(escaped, origin);
  });
  out.append("\"", Origin::kUser);
}

class JsonWriter {
 public:
  JsonWriter(Text& out, const JsonStyle& style) : out_(out), style_(style) {}

  void write(const Value& value, int level) {
    if (const Text* text = value.as_text()) {
      append_json_string(out_, *text, style_.ensure_ascii);
    } else if (const Dict* dict = value.as_dict()) {
      write_dict(*dict, level);
    } else if (const Sequence* list = value.as_sequence();
               list != nullptr && (list->flavor == Sequence::Flavor::kList ||
                                   list->flavor == Sequence::Flavor::kTuple)) {
      write_list(list->items, level);
    } else if (value.is_none() || value.is_number()) {
      put(scalar(value));
    } else {
      throw TemplateError("Object of type " + value.type_name() + " is not JSON serializable");
    }
  }

 private:
  void put(std::string_view bytes) { out_.append(bytes, Origin::kUser); }

  static std::string scalar(const Value& value) {
    if (value.is_none()) return "null";
    if (value.is<bool>()) return value.truthy() ? "true" : "false";
    if (value.is<Int>()) return int_repr(value.to_int());
    const double number = value.to_double();
    if (std::isnan(number)) return "NaN";
    if (std::isinf(number)) return number > 0 ? "Infinity" : "-Infinity";
    return float_repr(number);
  }

  void line_break(int level) {
    if (!style_.indent) return;
    put("\n");
    for (int i = 0; i < level; ++i)
      put(*style_.indent);
  }

  void write_list(const std::vector<Value>& items, int level) {
    if (items.empty()) return put("[]");
    put("[");
    for (std::size_t i = 0; i < items.size(); ++i) {
      if (i > 0) put(style_.item_separator);
      line_break(level + 1);
      write(items[i], level + 1);
    }
    line_break(level);
    put("]");
  }

  void write_dict(const Dict& dict, int level) {
    if (dict.entries.empty()) return put("{}");
    std::vector<const std::pair<Value, Value>*> entries;
    entries.reserve(dict.entries.size());
    for (const auto& entry : dict.entries)
      entries.push_back(&entry);
    if (style_.sort_keys) {
      merge_sort(entries,
                 [](const auto* l, const auto* r) { return compare(l->first, r->first, "<") < 0; });
    }
    put("{");
    for (std::size_t i = 0; i < entries.size(); ++i) {
      if (i > 0) put(style_.item_separator);
      line_break(level + 1);
      const Value& key = entries[i]->first;
      if (const Text* text = key.as_text()) {
        append_json_string(out_, *text, style_.ensure_ascii);
      } else if (key.is_none() || key.is_number()) {
        put("\"" + scalar(key) + "\"");
      } else {
        throw TemplateError("keys must be str, int, float, bool or None, not " + key.type_name());
      }
      put(style_.key_separator);
      write(entries[i]->second, level + 1);
    }
    line_break(level);
    put("}");
  }

  Text& out_;
  const JsonStyle& style_;
};

}  // namespace

std::string int_repr(Int value) {
  std::string digits;
  const bool negative = value < 0;
  auto rest =
      negative ? -static_cast<unsigned __int128>(value) : static_cast<unsigned __int128>(value);
  do {
    digits += static_cast<char>('0' + static_cast<int>(rest % 10));
    rest /= 10;
  } while (rest != 0);
  if (negative) digits += '-';
  std::reverse(digits.begin(), digits.end());
  return digits;
}

std::string float_repr(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  // The shortest digits that read back as `value`, then laid out as Python does: an exponent from
  // 1e16 up and below 1e-4.
  char buffer[40];
  const auto end =
      std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::scientific);
  const std::string_view text(buffer, static_cast<std::size_t>(end.ptr - buffer));
  const std::size_t e = text.find('e');
  const int exponent = std::atoi(std::string(text.substr(e + 1)).c_str());
  std::string sign;
  std::string digits;
  for (const char c : text.substr(0, e)) {
    if (c == '-') sign = "-";
    if (c >= '0' && c <= '9') digits += c;
  }
  if (exponent < -4 || exponent >= 16) {
    char tail[8];
    std::snprintf(tail, sizeof(tail), "e%+03d", exponent);
    return sign + digits.substr(0, 1) + (digits.size() > 1 ? "." + digits.substr(1) : "") + tail;
  }
  if (exponent < 0) return sign + "0." + std::string(-exponent - 1, '0') + digits;
  const auto whole = static_cast<std::size_t>(exponent) + 1;
  if (digits.size() <= whole) return sign + digits + std::string(whole - digits.size(), '0') + ".0";
  return sign + digits.substr(0, whole) + "." + digits.substr(whole);
}

void append_repr(Text& out, const Value& value) {
  if (const Text* text = value.as_text()) {
    if (value.is_markup()) out.append("Markup(", Origin::kUser);
    append_string_repr(out, *text);
    if (value.is_markup()) out.append(")", Origin::kUser);
  } else if (value.is_undefined()) {
    out.append("Undefined", Origin::kUser);
  } else {
    append_text(out, value);
  }
}

void append_text(Text& out, const Value& value) {
  struct Printer {
    Text& out;
    void put(std::string_view bytes) const { out.append(bytes, Origin::kUser); }
    void operator()(const Undefined&) const {}
    void operator()(const None&) const { put("None"); }
    void operator()(bool v) const { put(v ? "True" : "False"); }
    void operator()(Int v) const { put(int_repr(v)); }
    void operator()(double v) const { put(float_repr(v)); }
    void operator()(const String& v) const { out.append(*v.text); }
    void operator()(const std::shared_ptr<const Sequence>& v) const { append_sequence(out, *v); }
    void operator()(const std::shared_ptr<const Dict>& v) const { append_entries(out, v->entries); }
    void operator()(const std::shared_ptr<Namespace>&) const { put("<Namespace>"); }
    void operator()(const std::shared_ptr<const Callable>& v) const {
      put("<function " + v->name() + ">");
    }
    void operator()(const std::shared_ptr<LoopState>& v) const {
      put("<LoopContext " + std::to_string(v->index0 + 1) + "/" +
          std::to_string(v->items->items.size()) + ">");
    }
  };
  std::visit(Printer{out}, value.storage());
}

Text to_text(const Value& value) {
  if (const Text* text = value.as_text()) return *text;
  Text out;
  append_text(out, value);
  return out;
}

Text to_json(const Value& value, const JsonStyle& style) {
  Text out;
  JsonWriter(out, style).write(value, 0);
  return out;
}

Text escape_html(const Text& text) {
  Text out;
  text.for_each_run([&](std::string_view bytes, Origin origin) {
    std::string escaped;
    for (const char c : bytes) {
      switch (c) {
        case '&':
          escaped += "&amp;";
          break;
        case '<':
          escaped += "&lt;";
          break;
        case '>':
          escaped += "&gt;";
          break;
        case '\'':
          escaped += "&#39;";
          break;
        case '"':
          escaped += "&#34;";
          break;
        default:
          escaped += c;
      }
    }
    out.append(escaped, origin);
  });
  return out;
}

}  // namespace thaw::text::jinja
