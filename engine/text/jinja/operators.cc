#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/text/jinja/error.h"
#include "engine/text/jinja/print.h"
#include "engine/text/jinja/runtime.h"
#include "engine/text/jinja/unicode.h"

namespace thaw::text::jinja {
namespace {

using Flavor = Sequence::Flavor;

[[noreturn]] void fail_operands(std::string_view op, const Value& left, const Value& right) {
  require_defined(left);
  require_defined(right);
  throw TemplateError("unsupported operand type(s) for " + std::string(op) + ": '" +
                      left.type_name() + "' and '" + right.type_name() + "'");
}

[[noreturn]] void fail_range() {
  throw TemplateError("an integer grew out of range");
}

Int floor_divide(Int left, Int right) {
  const Int quotient = left / right;
  return left % right != 0 && (left < 0) != (right < 0) ? quotient - 1 : quotient;
}

Value integer_power(Int base, Int exponent) {
  if (exponent < 0) {
    if (base == 0) throw TemplateError("0.0 cannot be raised to a negative power");
    return Value::real(std::pow(static_cast<double>(base), static_cast<double>(exponent)));
  }
  if (base == 0 || base == 1) return Value::integer(exponent == 0 ? 1 : base);
  if (base == -1) return Value::integer(exponent % 2 == 0 ? 1 : -1);
  Int result = 1;
  for (; exponent > 0; --exponent) {
    if (__builtin_mul_overflow(result, base, &result)) fail_range();
  }
  return Value::integer(result);
}

Value integer_arithmetic(std::string_view op, Int left, Int right) {
  Int result = 0;
  if (op == "-") {
    if (__builtin_sub_overflow(left, right, &result)) fail_range();
    return Value::integer(result);
  }
  if (op == "*") {
    if (__builtin_mul_overflow(left, right, &result)) fail_range();
    return Value::integer(result);
  }
  if (op == "**") return integer_power(left, right);
  if (right == 0) {
    throw TemplateError(op == "/" ? "division by zero" : "integer division or modulo by zero");
  }
  if (op == "/") return Value::real(static_cast<double>(left) / static_cast<double>(right));
  if (right == -1) {
    if (op == "%") return Value::integer(0);
    if (__builtin_sub_overflow(Int{0}, left, &result)) fail_range();
    return Value::integer(result);
  }
  const Int quotient = floor_divide(left, right);
  return Value::integer(op == "//" ? quotient : left - quotient * right);
}

Value real_arithmetic(std::string_view op, double left, double right) {
  if (op == "-") return Value::real(left - right);
  if (op == "*") return Value::real(left * right);
  if (op == "**") return Value::real(std::pow(left, right));
  if (right == 0) throw TemplateError("float division by zero");
  if (op == "/") return Value::real(left / right);
  double remainder = std::fmod(left, right);
  if (remainder != 0 && (remainder < 0) != (right < 0)) remainder += right;
  if (op == "%") return Value::real(remainder);
  return Value::real(std::floor((left - remainder) / right + 0.5));
}

Value repeat(const Value& value, Int count) {
  count = std::max<Int>(count, 0);
  if (const Text* text = value.as_text()) {
    if (count > 0 &&
        text->size() > kMaxTextBytes / static_cast<std::size_t>(std::min<Int>(
                                           count, std::numeric_limits<std::int64_t>::max()))) {
      throw TemplateError("a repeated string is too long");
    }
    Text result;
    for (Int i = 0; i < count && !text->empty(); ++i)
      result.append(*text);
    return Value::text(std::move(result), value.is_markup());
  }
  const Sequence& sequence = *value.as_sequence();
  if (count > 0 &&
      sequence.weight > kMaxWeight / static_cast<std::size_t>(std::min<Int>(
                                         count, std::numeric_limits<std::int64_t>::max()))) {
    throw TemplateError("a repeated list is too long");
  }
  std::vector<Value> items;
  for (Int i = 0; i < count && !sequence.items.empty(); ++i) {
    items.insert(items.end(), sequence.items.begin(), sequence.items.end());
  }
  return sequence.flavor == Flavor::kTuple ? Value::tuple(std::move(items))
                                           : Value::list(std::move(items));
}

bool is_list_or_tuple(const Value& value) {
  const Sequence* sequence = value.as_sequence();
  return sequence != nullptr &&
         (sequence->flavor == Flavor::kList || sequence->flavor == Flavor::kTuple);
}

/// How Jinja names an object's type in its messages.
std::string object_name(const Value& value) {
  if (value.is_none()) return "None";
  if (value.is<std::shared_ptr<LoopState>>()) return "jinja2.runtime.LoopContext object";
  if (value.is<std::shared_ptr<Namespace>>()) return "jinja2.utils.Namespace object";
  return value.type_name() + " object";
}

Value missing_attribute(const Value& object, std::string_view name) {
  return Value::undefined("'" + object_name(object) + "' has no attribute '" + std::string(name) +
                          "'");
}

/// Python has it, the immutable sandbox hides it.
bool is_hidden_method(const Value& object, std::string_view name) {
  static constexpr std::string_view kOfLists[] = {"append", "extend",  "insert", "pop",
                                                  "remove", "reverse", "sort",   "clear"};
  static constexpr std::string_view kOfDicts[] = {"clear", "pop", "popitem", "setdefault",
                                                  "update"};
  const auto is_in = [&](const auto& names) {
    return std::find(std::begin(names), std::end(names), name) != std::end(names);
  };
  if (object.as_dict() != nullptr) return is_in(kOfDicts);
  const Sequence* sequence = object.as_sequence();
  return sequence != nullptr && sequence->flavor == Flavor::kList && is_in(kOfLists);
}

Value loop_attribute(const LoopState& loop, const Value& self, std::string_view name) {
  const std::vector<Value>& items = loop.items->items;
  const auto index0 = static_cast<Int>(loop.index0);
  const auto length = static_cast<Int>(items.size());
  if (name == "index") return Value::integer(index0 + 1);
  if (name == "index0") return Value::integer(index0);
  if (name == "first") return Value::boolean(index0 == 0);
  if (name == "last") return Value::boolean(index0 + 1 == length);
  if (name == "length") return Value::integer(length);
  if (name == "revindex") return Value::integer(length - index0);
  if (name == "revindex0") return Value::integer(length - index0 - 1);
  if (name == "depth") return Value::integer(1);
  if (name == "depth0") return Value::integer(0);
  if (name == "previtem") {
    return loop.index0 > 0 ? items[loop.index0 - 1] : Value::undefined("there is no previous item");
  }
  if (name == "nextitem") {
    return loop.index0 + 1 < items.size() ? items[loop.index0 + 1]
                                          : Value::undefined("there is no next item");
  }
  return missing_attribute(self, name);
}

Value item_at(const std::vector<Value>& items, Int index, const Value& object) {
  const auto size = static_cast<Int>(items.size());
  if (index < 0) index += size;
  if (index >= 0 && index < size) return items[static_cast<std::size_t>(index)];
  return Value::undefined(object_name(object) + " has no element " + int_repr(index));
}

/// The character `index` of a string, as a string.
Value char_at(const Text& text, Int index, const Value& object) {
  const std::string& bytes = text.bytes();
  std::size_t at = 0;
  if (index >= 0) {
    if (index < static_cast<Int>(bytes.size())) {
      at = byte_of_char(bytes, static_cast<std::size_t>(index));
    } else {
      at = bytes.size();
    }
  } else {
    at = bytes.size();
    while (index++ < 0) {
      if (at == 0) return Value::undefined(object_name(object) + " has no such element");
      at -= decode_before(bytes, at).size;
    }
  }
  if (at >= bytes.size()) return Value::undefined(object_name(object) + " has no such element");
  return Value::text(text.range(at, at + decode_at(bytes, at).size), object.is_markup());
}

struct SliceRange {
  std::int64_t start;
  std::int64_t stop;
  std::int64_t step;
};

/// The bounds clipped to a sequence of `size`, as Python's slice.indices gives them.
SliceRange clip_slice(std::int64_t size, const Value& start, const Value& stop, const Value& step) {
  const auto read = [](const Value& value, std::int64_t otherwise) -> std::int64_t {
    if (value.is_none()) return otherwise;
    require_defined(value);
    if (!value.is_int()) {
      throw TemplateError("slice indices must be integers or None, not " + value.type_name());
    }
    constexpr Int kFar = std::int64_t{1} << 60;
    return static_cast<std::int64_t>(std::clamp<Int>(value.to_int(), -kFar, kFar));
  };
  SliceRange range{};
  range.step = read(step, 1);
  if (range.step == 0) throw TemplateError("slice step cannot be zero");
  const std::int64_t low = range.step > 0 ? 0 : -1;
  const std::int64_t high = range.step > 0 ? size : size - 1;
  const auto clip = [&](std::int64_t v) { return std::clamp(v < 0 ? v + size : v, low, high); };
  range.start = start.is_none() ? (range.step > 0 ? low : high) : clip(read(start, 0));
  range.stop = stop.is_none() ? (range.step > 0 ? high : low) : clip(read(stop, 0));
  return range;
}

Text slice_text(const Text& text, const Value& start, const Value& stop, const Value& step) {
  const std::string& bytes = text.bytes();
  std::vector<std::size_t> positions;  // of each character, and the end
  for (std::size_t at = 0; at < bytes.size(); at += decode_at(bytes, at).size) {
    positions.push_back(at);
  }
  positions.push_back(bytes.size());
  const auto size = static_cast<std::int64_t>(positions.size()) - 1;
  const SliceRange range = clip_slice(size, start, stop, step);
  if (range.step == 1) {
    if (range.stop <= range.start) return {};
    return text.range(positions[static_cast<std::size_t>(range.start)],
                      positions[static_cast<std::size_t>(range.stop)]);
  }
  Text result;
  for (std::int64_t i = range.start; range.step > 0 ? i < range.stop : i > range.stop;
       i += range.step) {
    result.append_range(text, positions[static_cast<std::size_t>(i)],
                        positions[static_cast<std::size_t>(i) + 1]);
  }
  return result;
}

}  // namespace

void fail_type(const std::string& what, const Value& value) {
  require_defined(value);
  throw TemplateError(what + ": '" + value.type_name() + "'");
}

void require_defined(const Value& value) {
  if (const auto* undefined = std::get_if<Undefined>(&value.storage())) {
    throw TemplateError(*undefined->message);
  }
}

Value add(const Value& left, const Value& right) {
  if (left.is_string() && right.is_string()) {
    const bool markup = left.is_markup() || right.is_markup();
    Text result = markup && !left.is_markup() ? escape_html(*left.as_text()) : *left.as_text();
    result.append(markup && !right.is_markup() ? escape_html(*right.as_text()) : *right.as_text());
    return Value::text(std::move(result), markup);
  }
  if (left.is_number() && right.is_number()) {
    if (!left.is_int() || !right.is_int()) return Value::real(left.to_double() + right.to_double());
    Int result = 0;
    if (__builtin_add_overflow(left.to_int(), right.to_int(), &result)) fail_range();
    return Value::integer(result);
  }
  if (is_list_or_tuple(left) && is_list_or_tuple(right) &&
      left.as_sequence()->flavor == right.as_sequence()->flavor) {
    std::vector<Value> items = left.as_sequence()->items;
    items.insert(items.end(), right.as_sequence()->items.begin(), right.as_sequence()->items.end());
    return left.as_sequence()->flavor == Flavor::kTuple ? Value::tuple(std::move(items))
                                                        : Value::list(std::move(items));
  }
  fail_operands("+", left, right);
}

Value arithmetic(std::string_view op, const Value& left, const Value& right) {
  if (op == "%" && left.is_string()) {
    return Value::text(format_percent(*left.as_text(), right), left.is_markup());
  }
  if (left.is_number() && right.is_number()) {
    if (left.is_int() && right.is_int()) {
      return integer_arithmetic(op, left.to_int(), right.to_int());
    }
    return real_arithmetic(op, left.to_double(), right.to_double());
  }
  if (op == "*") {
    const auto repeats = [](const Value& v) { return v.is_string() || is_list_or_tuple(v); };
    if (repeats(left) && right.is_int()) return repeat(left, right.to_int());
    if (repeats(right) && left.is_int()) return repeat(right, left.to_int());
  }
  fail_operands(op, left, right);
}

Value negate(const Value& value) {
  if (value.is_int()) return integer_arithmetic("-", 0, value.to_int());
  if (value.is_number()) return Value::real(-value.to_double());
  fail_type("bad operand type for unary -", value);
}

Int truncate(double number) {
  if (!(std::abs(number) < 1e38)) throw TemplateError("cannot convert the float to an integer");
  return static_cast<Int>(number);
}

bool contains(const Value& container, const Value& item) {
  if (const Text* text = container.as_text()) {
    if (!item.is_string()) {
      throw TemplateError("'in <string>' requires string as left operand, not " + item.type_name());
    }
    return text->bytes().find(item.as_text()->bytes()) != std::string::npos;
  }
  if (const Dict* dict = container.as_dict()) {
    if (item.as_dict() != nullptr) fail_type("unhashable type", item);
    return dict->find(item) != nullptr;
  }
  if (container.is_undefined()) return false;
  const Sequence* sequence = container.as_sequence();
  if (sequence == nullptr) {
    throw TemplateError("argument of type '" + container.type_name() + "' is not iterable");
  }
  const auto items = iterate(container);
  return std::any_of(items.begin(), items.end(),
                     [&](const Value& held) { return equal(held, item); });
}

Items iterate(const Value& value) {
  static const auto empty = std::make_shared<const Sequence>(Flavor::kList, std::vector<Value>());
  if (const auto* sequence = std::get_if<std::shared_ptr<const Sequence>>(&value.storage())) {
    if ((*sequence)->flavor != Flavor::kIterator) return Items(*sequence);
    if ((*sequence)->taken) return Items(empty);
    (*sequence)->taken = true;
    return Items(*sequence);
  }
  if (value.is_undefined()) return Items(empty);
  std::vector<Value> items;
  if (const Dict* dict = value.as_dict()) {
    items.reserve(dict->entries.size());
    for (const auto& [key, item] : dict->entries)
      items.push_back(key);
  } else if (const Text* text = value.as_text()) {
    const std::string& bytes = text->bytes();
    if (bytes.size() / 4 > kMaxWeight) throw TemplateError("the string is too long to walk");
    for (std::size_t at = 0; at < bytes.size();) {
      const std::size_t size = decode_at(bytes, at).size;
      items.push_back(Value::text(text->range(at, at + size), value.is_markup()));
      at += size;
    }
  } else {
    throw TemplateError("'" + value.type_name() + "' object is not iterable");
  }
  return Items(std::make_shared<const Sequence>(Flavor::kList, std::move(items)));
}

Value get_attribute(const Value& object, std::string_view name) {
  require_defined(object);
  if (const auto* held = std::get_if<std::shared_ptr<Namespace>>(&object.storage())) {
    const Value* value = (*held)->find(name);
    return value != nullptr ? *value : missing_attribute(object, name);
  }
  if (auto method = find_method(object, name)) return Value(std::move(method));
  if (const auto* loop = std::get_if<std::shared_ptr<LoopState>>(&object.storage())) {
    return loop_attribute(**loop, object, name);
  }
  if (is_hidden_method(object, name)) {
    return Value::undefined("access to attribute '" + std::string(name) + "' of '" +
                            object.type_name() + "' object is unsafe.");
  }
  if (const Dict* dict = object.as_dict()) {
    if (const Value* value = dict->find(name)) return *value;
  }
  return missing_attribute(object, name);
}

Value get_item(const Value& object, const Value& key) {
  require_defined(object);
  if (const Dict* dict = object.as_dict()) {
    if (const Value* value = dict->find(key)) return *value;
  }
  if (key.is_int()) {
    const Sequence* sequence = object.as_sequence();
    if (sequence != nullptr && sequence->indexable()) {
      return item_at(sequence->items, key.to_int(), object);
    }
    if (const Text* text = object.as_text()) return char_at(*text, key.to_int(), object);
  }
  if (const Text* name = key.as_text()) return get_attribute(object, name->bytes());
  Text printed;
  append_repr(printed, key);
  return Value::undefined(object_name(object) + " has no element " + printed.bytes());
}

Value get_slice(const Value& object, const Value& start, const Value& stop, const Value& step) {
  if (const Text* text = object.as_text()) {
    return Value::text(slice_text(*text, start, stop, step), object.is_markup());
  }
  const Sequence* sequence = object.as_sequence();
  if (sequence == nullptr || !sequence->indexable()) {
    fail_type("object cannot be sliced", object);
  }
  const SliceRange range =
      clip_slice(static_cast<std::int64_t>(sequence->items.size()), start, stop, step);
  std::vector<Value> items;
  for (std::int64_t i = range.start; range.step > 0 ? i < range.stop : i > range.stop;
       i += range.step) {
    items.push_back(sequence->items[static_cast<std::size_t>(i)]);
  }
  return sequence->flavor == Flavor::kTuple ? Value::tuple(std::move(items))
                                            : Value::list(std::move(items));
}

}  // namespace thaw::text::jinja
