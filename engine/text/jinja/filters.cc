#include "engine/text/jinja/filters.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <unordered_map>

#include "engine/text/jinja/error.h"
#include "engine/text/jinja/format.h"
#include "engine/text/jinja/print.h"
#include "engine/text/jinja/text_ops.h"
#include "engine/text/jinja/unicode.h"

// Filters on text and on single values; those on sequences are in filters_sequence.cc.
namespace thaw::text::jinja {
namespace {

/// A filter of a string to a string, on whatever prints as one.
template <Text (*kOperation)(const Text&)>
Value text_filter(Runtime&, const Value& input, const Args&) {
  return Value::text(kOperation(to_text(input)), input.is_markup());
}

Text title_words(const Text& text) {
  return title(text, false);
}

Value tojson_filter(Runtime&, const Value& input, const Args& args) {
  const BoundArgs bound("tojson", args, {"ensure_ascii", "indent", "separators", "sort_keys"});
  JsonStyle style;
  style.ensure_ascii = bound.flag(0, false);
  style.sort_keys = bound.flag(3, false);
  if (bound[1] != nullptr && !bound[1]->is_none()) {
    if (const Text* indent = bound[1]->as_text()) {
      style.indent = indent->bytes();
    } else {
      const Int width = std::clamp<Int>(bound.integer(1, 0), 0, 1000);
      style.indent = std::string(static_cast<std::size_t>(width), ' ');
    }
    style.item_separator.assign(1, ',');
  }
  if (bound[2] != nullptr && !bound[2]->is_none()) {
    const auto pair = iterate(*bound[2]);
    if (pair.vector().size() != 2 || !pair.vector()[0].is_string() ||
        !pair.vector()[1].is_string()) {
      throw TemplateError("tojson: separators must be two strings");
    }
    style.item_separator = pair.vector()[0].as_text()->bytes();
    style.key_separator = pair.vector()[1].as_text()->bytes();
  }
  return Value::text(to_json(input, style));
}

/// Not in Python's set-up, but templates written for other runtimes ask for it.
Value from_json_filter(Runtime&, const Value& input, const Args&) {
  if (!input.is_string()) fail_type("from_json needs a string, not", input);
  const auto json = nlohmann::ordered_json::parse(input.as_text()->bytes(), nullptr, false);
  if (json.is_discarded()) throw TemplateError("from_json: the text is not valid JSON");
  return Value::from_json(json, Origin::kUser);
}

Value trim_filter(Runtime&, const Value& input, const Args& args) {
  const BoundArgs bound("trim", args, {"chars"});
  const Text text = to_text(input);
  if (bound[0] == nullptr || bound[0]->is_none()) {
    return Value::text(strip(text, std::nullopt, Side::kBoth), input.is_markup());
  }
  if (!bound[0]->is_string()) fail_type("trim needs a string, not", *bound[0]);
  return Value::text(strip(text, bound[0]->as_text()->bytes(), Side::kBoth), input.is_markup());
}

Value string_filter(Runtime&, const Value& input, const Args&) {
  return input.is_string() ? input : Value::text(to_text(input));
}

Value safe_filter(Runtime&, const Value& input, const Args&) {
  return Value::text(to_text(input), true);
}

Value escape_filter(Runtime&, const Value& input, const Args&) {
  return input.is_markup() ? input : Value::text(escape_html(to_text(input)), true);
}

Value replace_filter(Runtime&, const Value& input, const Args& args) {
  const BoundArgs bound("replace", args, {"old", "new", "count"});
  Int most = -1;
  if (bound[2] != nullptr && !bound[2]->is_none()) most = bound.integer(2, -1);
  return Value::text(
      replace(to_text(input), to_text(bound.required(0)).bytes(), to_text(bound.required(1)),
              most < 0 ? -1 : static_cast<std::int64_t>(std::min<Int>(most, Int{1} << 60))));
}

Value indent_filter(Runtime&, const Value& input, const Args& args) {
  const BoundArgs bound("indent", args, {"width", "first", "blank"});
  Text indention;
  if (bound[0] != nullptr && bound[0]->is_string()) {
    indention = *bound[0]->as_text();
  } else {
    const Int width = std::clamp<Int>(bound.integer(0, 4), 0, 10'000);
    indention.append(std::string(static_cast<std::size_t>(width), ' '), Origin::kUser);
  }
  if (!input.is_string()) fail_type("indent needs a string, not", input);
  const bool blank = bound.flag(2, false);
  Text source = *input.as_text();
  source.append("\n", Origin::kUser);
  const std::vector<Text> lines = split_lines(source, false);
  Text result;
  if (bound.flag(1, false)) result.append(indention);
  for (std::size_t i = 0; i < lines.size(); ++i) {
    if (i > 0) {
      result.append("\n", Origin::kUser);
      if (blank || !lines[i].empty()) result.append(indention);
    }
    result.append(lines[i]);
  }
  return Value::text(std::move(result), input.is_markup());
}

Value format_filter(Runtime&, const Value& input, const Args& args) {
  if (!args.named.empty() && !args.positional.empty()) {
    throw TemplateError("can't handle positional and keyword arguments at the same time");
  }
  Value values = Value::tuple(args.positional);
  if (!args.named.empty()) {
    auto dict = std::make_shared<Dict>();
    for (const auto& [name, value] : args.named) {
      dict->set(Value::text(name, Origin::kUser), value);
    }
    values = Value(std::shared_ptr<const Dict>(std::move(dict)));
  }
  return Value::text(format_percent(to_text(input), values), input.is_markup());
}

Value center_filter(Runtime&, const Value& input, const Args& args) {
  const BoundArgs bound("center", args, {"width"});
  const Int width = std::clamp<Int>(bound.integer(0, 80), 0, Int{1} << 40);
  return Value::text(pad(to_text(input), static_cast<std::int64_t>(width), " ", Side::kBoth),
                     input.is_markup());
}

Value wordcount_filter(Runtime&, const Value& input, const Args&) {
  Int count = 0;
  bool inside = false;
  const Text text = to_text(input);
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint c = decode_at(text.bytes(), at);
    const bool word = is_alpha(c.value) || c.value == U'_' || (c.value >= U'0' && c.value <= U'9');
    if (word && !inside) ++count;
    inside = word;
    at += c.size;
  }
  return Value::integer(count);
}

Value default_filter(Runtime&, const Value& input, const Args& args) {
  const BoundArgs bound("default", args, {"default_value", "boolean"});
  if (!input.is_undefined() && !(bound.flag(1, false) && !input.truthy())) return input;
  return bound[0] != nullptr ? *bound[0] : Value::text(Text());
}

/// A string as Python's int() and float() read it: no spaces around, no underscores.
std::optional<std::string> number_text(const Text& text) {
  std::string digits = strip(text, std::nullopt, Side::kBoth).bytes();
  for (std::size_t i = 0; i < digits.size(); ++i) {
    if (digits[i] != '_') continue;
    const auto is_digit = [&](std::size_t at) {
      return at < digits.size() && std::isxdigit(static_cast<unsigned char>(digits[at])) != 0;
    };
    if (i == 0 || !is_digit(i - 1) || !is_digit(i + 1)) return std::nullopt;
  }
  digits.erase(std::remove(digits.begin(), digits.end(), '_'), digits.end());
  if (!digits.empty() && digits[0] == '+') digits.erase(0, 1);
  if (digits.empty() || digits[0] == '+') return std::nullopt;
  return digits;
}

std::optional<double> parse_float(const Text& text) {
  const auto digits = number_text(text);
  if (!digits) return std::nullopt;
  double value = 0;
  const auto parsed = std::from_chars(digits->data(), digits->data() + digits->size(), value);
  if (parsed.ptr != digits->data() + digits->size()) return std::nullopt;
  if (parsed.ec == std::errc::result_out_of_range) return std::strtod(digits->c_str(), nullptr);
  if (parsed.ec != std::errc()) return std::nullopt;
  return value;
}

std::optional<Int> parse_int(const Text& text, int base) {
  auto digits = number_text(text);
  if (!digits) return std::nullopt;
  const bool negative = digits->front() == '-';
  if (negative) digits->erase(0, 1);
  const char letter = digits->size() > 2 ? static_cast<char>((*digits)[1] | 0x20) : '\0';
  if ((*digits)[0] == '0' && ((base == 16 && letter == 'x') || (base == 8 && letter == 'o') ||
                              (base == 2 && letter == 'b'))) {
    digits->erase(0, 2);
  }
  if (digits->empty()) return std::nullopt;
  Int value = 0;
  for (const char c : *digits) {
    int digit = 99;
    if (c >= '0' && c <= '9') digit = c - '0';
    const char folded = static_cast<char>(c | 0x20);
    if (folded >= 'a' && folded <= 'z') digit = folded - 'a' + 10;
    if (digit >= base) return std::nullopt;
    if (__builtin_mul_overflow(value, Int{base}, &value) ||
        __builtin_add_overflow(value, Int{digit}, &value)) {
      throw TemplateError("an integer grew out of range");
    }
  }
  return negative ? -value : value;
}

Value int_filter(Runtime&, const Value& input, const Args& args) {
  const BoundArgs bound("int", args, {"default", "base"});
  Value otherwise = bound[0] != nullptr ? *bound[0] : Value::integer(0);
  require_defined(input);
  if (input.is_int()) return Value::integer(input.to_int());
  const auto whole = [&](double number) {
    return std::isfinite(number) ? Value::integer(truncate(number)) : otherwise;
  };
  if (input.is<double>()) return whole(input.to_double());
  if (!input.is_string()) return otherwise;
  const Int base = bound.integer(1, 10);
  if (base < 2 || base > 36) throw TemplateError("int: the base must lie between 2 and 36");
  if (const auto value = parse_int(*input.as_text(), static_cast<int>(base))) {
    return Value::integer(*value);
  }
  const auto number = parse_float(*input.as_text());
  return number ? whole(*number) : otherwise;
}

Value float_filter(Runtime&, const Value& input, const Args& args) {
  const BoundArgs bound("float", args, {"default"});
  require_defined(input);
  if (input.is_number()) return Value::real(input.to_double());
  if (input.is_string()) {
    if (const auto value = parse_float(*input.as_text())) return Value::real(*value);
  }
  return bound[0] != nullptr ? *bound[0] : Value::real(0);
}

Value abs_filter(Runtime&, const Value& input, const Args&) {
  if (!input.is_number()) fail_type("bad operand type for abs()", input);
  if (input.is_int()) return input.to_int() < 0 ? negate(input) : Value::integer(input.to_int());
  return Value::real(std::abs(input.to_double()));
}

/// round(value, digits): to the nearest, ties to even, decided on the exact decimal value.
double round_decimal(double value, int digits) {
  if (!std::isfinite(value) || digits > 300) return value;
  if (digits >= 0) {
    char buffer[700];
    std::snprintf(buffer, sizeof(buffer), "%.*f", digits, value);
    return std::strtod(buffer, nullptr);
  }
  const double unit = std::pow(10.0, -digits);
  return std::isfinite(unit) ? std::nearbyint(value / unit) * unit : 0.0;
}

Value round_filter(Runtime&, const Value& input, const Args& args) {
  const BoundArgs bound("round", args, {"precision", "method"});
  const auto digits = static_cast<int>(std::clamp<Int>(bound.integer(0, 0), -400, 400));
  std::string method = "common";
  if (bound[1] != nullptr) method = to_text(*bound[1]).bytes();
  if (method != "common" && method != "ceil" && method != "floor") {
    throw TemplateError("method must be common, ceil or floor");
  }
  if (!input.is_number()) fail_type("round needs a number, not", input);
  const double value = input.to_double();
  if (method == "common") {
    if (input.is_int() && digits >= 0) return Value::integer(input.to_int());
    const double rounded = round_decimal(value, digits);
    return input.is_int() ? Value::integer(truncate(rounded)) : Value::real(rounded);
  }
  const double scale = std::pow(10.0, digits);
  const double scaled = value * scale;
  return Value::real((method == "ceil" ? std::ceil(scaled) : std::floor(scaled)) / scale);
}

using Filters = std::unordered_map<std::string_view, FilterFunction>;

const Filters& filters() {
  static const Filters filters = [] {
    Filters all{
        {"tojson", tojson_filter},
        {"from_json", from_json_filter},
        {"fromjson", from_json_filter},
        {"trim", trim_filter},
        {"string", string_filter},
        {"safe", safe_filter},
        {"escape", escape_filter},
        {"e", escape_filter},
        {"replace", replace_filter},
        {"indent", indent_filter},
        {"format", format_filter},
        {"center", center_filter},
        {"wordcount", wordcount_filter},
        {"upper", text_filter<upper>},
        {"lower", text_filter<lower>},
        {"capitalize", text_filter<capitalize>},
        {"title", text_filter<title_words>},
        {"default", default_filter},
        {"d", default_filter},
        {"int", int_filter},
        {"float", float_filter},
        {"abs", abs_filter},
        {"round", round_filter},
    };
    for (const auto& [name, filter] : sequence_filters())
      all.emplace(name, filter);
    return all;
  }();
  return filters;
}

}  // namespace

FilterFunction find_filter(std::string_view name) {
  const auto found = filters().find(name);
  return found == filters().end() ? nullptr : found->second;
}

}  // namespace thaw::text::jinja
