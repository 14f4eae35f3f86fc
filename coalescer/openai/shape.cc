#include "coalescer/openai/shape.h"

#include <algorithm>
#include <utility>

#include "coalescer/openai/field_words.h"
#include "coalescer/openai/json_fields.h"
#include "coalescer/openai/json_text.h"

namespace thaw::coalescer {
namespace {

using simdjson::dom::element;
using simdjson::dom::element_type;

/// Where a value is. Written out where something is wrong with it only.
struct Path {
  const Path* above;
  std::string_view name;
  std::optional<std::size_t> index = std::nullopt;

  std::string text() const {
    std::string out = above == nullptr ? "" : above->text();
    if (index) return out + "[" + std::to_string(*index) + "]";
    if (above != nullptr && above->above != nullptr) out += '.';
    return out.append(name);
  }
};

/// What would be right.
std::string right_of(const Field& field, const ShapeLimits& limits) {
  switch (field.kind) {
    case ValueKind::kAny:
      return "any value";
    case ValueKind::kBoolean:
      return field.most == 0 ? "false" : "true or false";
    case ValueKind::kString:
      return field.words.empty() ? "a string" : list_of(field.words, "\"", " or ");
    case ValueKind::kWhole:
      return whole_text(field.least, limits.most(field));
    case ValueKind::kNumber:
      if (field.is_above) {
        return "a number above " + number_text(field.minimum) + " and at most " +
               number_text(field.maximum);
      }
      return "a number from " + number_text(field.minimum) + " to " + number_text(field.maximum);
    case ValueKind::kList:
      return "a list";
    case ValueKind::kMap:
    case ValueKind::kObject:
      return "an object";
    case ValueKind::kOneOf: {
      std::string out;
      for (const Field& option : field.options)
        out += (out.empty() ? "" : " or ") + right_of(option, limits);
      return out;
    }
    case ValueKind::kNothing:
      break;
  }
  return "left out";
}

bool has_type_of(const Field& field, element value) {
  switch (field.kind) {
    case ValueKind::kBoolean:
      return value.is_bool();
    case ValueKind::kString:
      return value.is_string();
    case ValueKind::kWhole:
    case ValueKind::kNumber:
      return value.is_number();
    case ValueKind::kList:
      return value.is_array();
    case ValueKind::kMap:
    case ValueKind::kObject:
      return value.is_object();
    default:
      return true;
  }
}

class Checker {
 public:
  explicit Checker(const ShapeLimits& limits) : limits_(limits) {}

  std::optional<ApiError> object(const Shape& shape, simdjson::dom::object object,
                                 const Path& path) const {
    for (const auto member : object) {
      const Field* field = shape.find(member.key);
      if (field == nullptr || member.value.is_null()) continue;
      if (auto error = value(*field, member.value, Path{&path, member.key})) return error;
    }
    for (const auto& part : shape.parts) {
      for (const Field& field : part) {
        if (!field.is_needed || field.is_by_hand || shape.find(field.name) != &field) continue;
        if (is_given(object, field.name, true)) continue;
        const std::string name = Path{&path, field.name}.text();
        return invalid_field(name,
                             "`" + name + "` is missing; it must be " + right_of(field, limits_));
      }
    }
    for (const ShapeRule& rule : shape.rules)
      if (auto error = check(rule, object, path)) return error;
    return std::nullopt;
  }

 private:
  static bool is_given(simdjson::dom::object object, std::string_view name, bool counts_empty) {
    element value;
    if (object.at_key(name).get(value) != simdjson::SUCCESS || value.is_null()) return false;
    if (counts_empty) return true;
    std::string_view text;
    simdjson::dom::array array;
    if (value.get(text) == simdjson::SUCCESS) return !text.empty();
    return value.get(array) != simdjson::SUCCESS || array.begin() != array.end();
  }

  static std::optional<ApiError> check(const ShapeRule& rule, simdjson::dom::object object,
                                       const Path& path) {
    if (rule.kind == ShapeRule::Kind::kNone || rule.kind == ShapeRule::Kind::kUnless)
      return std::nullopt;
    const auto names = rule.given_names();
    const auto count = std::ranges::count_if(
        names, [&](std::string_view name) { return is_given(object, name, rule.counts_empty); });
    if (count == 1 || (count > 1 && rule.kind == ShapeRule::Kind::kAtLeastOne)) return std::nullopt;
    const bool is_root = path.above == nullptr;
    std::string param = is_root ? std::string(path.name).append(names.front()) : path.text();
    std::string message = count == 0 ? list_of(names, "`", " or ") + " is missing"
                                     : "several of " + list_of(names, "`", " and ") + " are given";
    message += (is_root ? "" : " in `" + param + "`") + std::string("; ");
    return invalid_field(std::move(param), std::move(message.append(rule.right)));
  }

  std::optional<ApiError> wrong(const Field& field, element value, const Path& path) const {
    const std::string name = path.text();
    return invalid_field(name, "`" + name + "` is " + shown_value(value) + "; it must be " +
                                   right_of(field, limits_));
  }

  /// `unit`: "characters".
  std::optional<ApiError> check_size(const Field& field, std::int64_t size, const char* unit,
                                     const Path& path) const {
    const std::int64_t most = limits_.most(field);
    if (size >= field.least && size <= most) return std::nullopt;
    const std::string name = path.text();
    const std::string bound =
        size > most ? "at most " + std::to_string(most) : "at least " + std::to_string(field.least);
    return invalid_field(name, "`" + name + "` has " + std::to_string(size) + " " + unit +
                                   "; it must have " + bound);
  }

  /// Whether the value says more than a field may that can only be left empty.
  static bool is_refused(const Field& field, element value) {
    if (field.kind == ValueKind::kNothing) return true;
    if (field.most != 0) return false;
    if (field.kind == ValueKind::kBoolean) return value.is_bool() && bool(value);
    if (field.kind == ValueKind::kString)
      return value.is_string() && !std::string_view(value).empty();
    return field.kind == ValueKind::kList && value.is_array() &&
           simdjson::dom::array(value).size() > 0;
  }

  std::optional<ApiError> value(const Field& field, element value, const Path& path) const {
    if (field.is_by_hand) return std::nullopt;
    if (is_refused(field, value)) {
      const std::string name = path.text();
      return unsupported_field(name,
                               "`" + name + "` is not supported here; " + std::string(field.about));
    }
    if (!has_type_of(field, value)) return wrong(field, value, path);
    switch (field.kind) {
      case ValueKind::kBoolean:
        return std::nullopt;
      case ValueKind::kString:
        return check_text(field, value, path);
      case ValueKind::kWhole: {
        const auto number = whole_number(value);
        if (!number || *number < field.least || *number > limits_.most(field))
          return wrong(field, value, path);
        return std::nullopt;
      }
      case ValueKind::kNumber: {
        double number = 0;
        if (value.get(number) != simdjson::SUCCESS || number > field.maximum ||
            number < field.minimum || (field.is_above && number == field.minimum))
          return wrong(field, value, path);
        return std::nullopt;
      }
      case ValueKind::kList:
        return check_list(field, value, path);
      case ValueKind::kMap:
        return check_map(field, value, path);
      case ValueKind::kObject:
        return object(*field.shape, value, path);
      case ValueKind::kOneOf:
        return check_options(field, value, path);
      default:
        return std::nullopt;
    }
  }

  std::optional<ApiError> check_text(const Field& field, element value, const Path& path) const {
    const std::string_view text = value;
    if (!field.words.empty()) {
      if (std::ranges::find(field.words, text) != field.words.end()) return std::nullopt;
      return wrong(field, value, path);
    }
    const auto bytes = static_cast<std::int64_t>(text.size());
    // No more characters than bytes, and no text of bytes without one.
    if (bytes <= field.most && (field.least <= 1 ? bytes >= field.least : false))
      return std::nullopt;
    if (field.counts_bytes) return check_size(field, bytes, "bytes of UTF-8", path);
    return check_size(field, static_cast<std::int64_t>(count_characters(text)), "characters", path);
  }

  std::optional<ApiError> check_list(const Field& field, element value, const Path& path) const {
    // array::size() stops at 0xFFFFFF.
    std::int64_t size = 0;
    for (const element entry : simdjson::dom::array(value)) {
      const auto index = static_cast<std::size_t>(size++);
      if (auto error = this->value(*field.item, entry, Path{&path, "", index})) return error;
    }
    return check_size(field, size, "entries", path);
  }

  std::optional<ApiError> check_map(const Field& field, element value, const Path& path) const {
    std::int64_t size = 0;
    if (field.item->kind == ValueKind::kAny && field.most == kMaxInt64) return std::nullopt;
    for (const auto member : simdjson::dom::object(value)) {
      ++size;
      if (auto error = this->value(*field.item, member.value, Path{&path, member.key}))
        return error;
    }
    return check_size(field, size, "entries", path);
  }

  std::optional<ApiError> check_options(const Field& field, element value, const Path& path) const {
    std::optional<ApiError> first;
    int tried = 0;
    for (const Field& option : field.options) {
      if (!has_type_of(option, value)) continue;
      auto error = this->value(option, value, path);
      if (!error) return std::nullopt;
      if (tried++ == 0) first = std::move(error);
    }
    // What only one option could have been is told as that one.
    return tried == 1 ? first : wrong(field, value, path);
  }

  const ShapeLimits& limits_;
};

}  // namespace

const Field* Shape::find(std::string_view field_name) const {
  for (const auto& part : parts)
    for (const Field& field : part)
      if (field.name == field_name) return &field;
  return nullptr;
}

std::span<const std::string_view> ShapeRule::given_names() const {
  const auto* const end = std::ranges::find(names, std::string_view());
  return {names.begin(), end};
}

std::int64_t ShapeLimits::most(const Field& field) const {
  switch (field.bound) {
    case ServerBound::kChoices:
      return max_choices;
    case ServerBound::kTokenId:
      return vocab_size - 1;
    case ServerBound::kSessionTtl:
      return max_session_ttl;
    case ServerBound::kSlot:
      return num_slots - 1;
    case ServerBound::kNone:
      break;
  }
  return field.most;
}

std::optional<ApiError> check_shape(const Shape& shape, simdjson::dom::object object,
                                    const ShapeLimits& limits, std::string_view prefix) {
  return Checker(limits).object(shape, object, Path{nullptr, prefix});
}

}  // namespace thaw::coalescer
