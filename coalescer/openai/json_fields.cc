#include "coalescer/openai/json_fields.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

namespace thaw::coalescer {
namespace {

using simdjson::dom::element;
using simdjson::dom::element_type;

/// Bytes of a client's value that an error repeats.
constexpr std::size_t kMaxValueShown = 60;

/// JSON bounds no number, the parser takes 64 bits: whole numbers of more digits get the form of
/// floats.
std::string with_large_numbers(std::string_view text) {
  constexpr std::size_t kDigits = 19;
  std::string out;
  out.reserve(text.size() + 64);
  bool is_quoted = false;
  for (std::size_t i = 0; i < text.size();) {
    const char c = text[i];
    if (is_quoted && c == '\\' && i + 1 < text.size()) {
      out.append(text, i, 2);
      i += 2;
      continue;
    }
    if (c == '"') is_quoted = !is_quoted;
    if (is_quoted || c < '0' || c > '9') {
      out += c;
      ++i;
      continue;
    }
    const std::size_t end = std::min(text.find_first_not_of("0123456789.eE+-", i), text.size());
    const std::string_view number = text.substr(i, end - i);
    out += number;
    if (number.size() >= kDigits && number.find_first_of(".eE") == std::string_view::npos)
      out += ".0";
    i = end;
  }
  return out;
}

}  // namespace

std::optional<ApiError> JsonBody::parse(std::string_view text, std::size_t max_depth) {
  if (text.empty()) return invalid_field("", "the body is empty; it must be a JSON object");
  // One capacity for all small bodies; simdjson allocates in proportion to it.
  auto error = parser_.allocate(std::max<std::size_t>(text.size(), 1024), max_depth);
  if (error == simdjson::SUCCESS) {
    element root;
    error = parser_.parse(text.data(), text.size()).get(root);
    if (error == simdjson::NUMBER_ERROR) error = parser_.parse(with_large_numbers(text)).get(root);
    if (error == simdjson::SUCCESS) {
      if (root.get(root_) == simdjson::SUCCESS) return std::nullopt;
      return invalid_field(
          "", std::string("the body is ") + json_type_name(root) + "; it must be a JSON object");
    }
  }
  if (error == simdjson::DEPTH_ERROR) {
    return invalid_field("", "the body nests deeper than " + std::to_string(max_depth) +
                                 " levels, the most that is accepted");
  }
  if (error == simdjson::UTF8_ERROR)
    return invalid_field("", "the body is not valid UTF-8; JSON must be sent as UTF-8");
  if (error == simdjson::MEMALLOC || error == simdjson::CAPACITY) {
    ApiError too_big = invalid_field("", "the body is too large to parse");
    too_big.status = 413;
    return too_big;
  }
  return invalid_field(
      "", std::string("the body is not valid JSON: ") + simdjson::error_message(error));
}

std::string shown_value(element value) {
  const element_type type = value.type();
  if (type == element_type::ARRAY || type == element_type::OBJECT) return json_type_name(value);
  std::string text = simdjson::to_string(value);
  if (text.size() > kMaxValueShown) {
    std::size_t end = kMaxValueShown;
    while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80)
      --end;
    text = text.substr(0, end) + "...";
  }
  return text;
}

std::string number_text(double value) {
  if (value == std::floor(value) && std::abs(value) < 1e15)
    return std::to_string(static_cast<std::int64_t>(value));
  std::string text = std::to_string(value);
  text.erase(text.find_last_not_of('0') + 1);
  return text;
}

std::optional<std::int64_t> whole_number(element value) {
  std::int64_t number = 0;
  if (value.get(number) == simdjson::SUCCESS) return number;
  double real = 0;
  if (value.type() == element_type::DOUBLE && value.get(real) == simdjson::SUCCESS &&
      real == std::floor(real) && std::abs(real) < 9e15)
    return static_cast<std::int64_t>(real);
  return std::nullopt;
}

const char* json_type_name(element value) {
  switch (value.type()) {
    case element_type::ARRAY:
      return "a list";
    case element_type::OBJECT:
      return "an object";
    case element_type::INT64:
    case element_type::UINT64:
    case element_type::DOUBLE:
      return "a number";
    case element_type::STRING:
      return "a string";
    case element_type::BOOL:
      return "a boolean";
    case element_type::NULL_VALUE:
      return "null";
  }
  return "unknown";
}

nlohmann::ordered_json to_ordered_json(simdjson::dom::object value) {
  auto object = nlohmann::ordered_json::object();
  for (const auto field : value)
    append_member(object, field.key, to_ordered_json(field.value));
  return object;
}

void append_member(nlohmann::ordered_json& object, std::string_view key,
                   nlohmann::ordered_json value) {
  // Of a key that is there twice the first counts.
  constexpr std::size_t kSearched = 64;
  using Members = std::vector<std::pair<const std::string, nlohmann::ordered_json>>;
  auto& members = object.get_ref<nlohmann::ordered_json::object_t&>();
  if (members.size() < kSearched)
    members.emplace(std::string(key), std::move(value));
  else
    static_cast<Members&>(members).emplace_back(key, std::move(value));
}

nlohmann::ordered_json open_arguments(const std::string& text) {
  if (text.find_first_not_of(" \t\r\n") == std::string::npos)
    return nlohmann::ordered_json::object();
  JsonBody body;
  if (body.parse(text)) return text;
  return to_ordered_json(body.root());
}

nlohmann::ordered_json to_ordered_json(element value) {
  switch (value.type()) {
    case element_type::ARRAY: {
      auto list = nlohmann::ordered_json::array();
      for (const element item : simdjson::dom::array(value))
        list.push_back(to_ordered_json(item));
      return list;
    }
    case element_type::OBJECT:
      return to_ordered_json(simdjson::dom::object(value));
    case element_type::INT64:
      return std::int64_t(value);
    case element_type::UINT64:
      return std::uint64_t(value);
    case element_type::DOUBLE:
      return double(value);
    case element_type::STRING:
      return std::string(std::string_view(value));
    case element_type::BOOL:
      return bool(value);
    case element_type::NULL_VALUE:
      break;
  }
  return nullptr;
}

std::optional<TokenId> as_token_id(element value, int vocab_size) {
  const auto number = whole_number(value);
  if (!number || *number < 0 || *number >= vocab_size) return std::nullopt;
  return static_cast<TokenId>(*number);
}

ApiResult<std::vector<TokenId>> token_list(simdjson::dom::array list, const std::string& name,
                                           int vocab_size) {
  std::vector<TokenId> tokens;
  for (const element value : list) {
    const auto token = as_token_id(value, vocab_size);
    if (!token) {
      return invalid_field(name, "`" + name + "[" + std::to_string(tokens.size()) +
                                     "]` must be a token id from 0 to " +
                                     std::to_string(vocab_size - 1));
    }
    tokens.push_back(*token);
  }
  return tokens;
}

std::optional<element> JsonFields::find(std::string_view name) const {
  element value;
  if (object_.at_key(name).get(value) != simdjson::SUCCESS || value.is_null()) return std::nullopt;
  return value;
}

void JsonFields::read(std::string_view name, bool& target) {
  const auto value = failed() ? std::nullopt : find(name);
  if (value && value->get(target) != simdjson::SUCCESS) fail(name, *value, "true or false");
}

void JsonFields::read(std::string_view name, std::string& target) {
  const auto value = failed() ? std::nullopt : find(name);
  if (!value) return;
  std::string_view text;
  if (value->get(text) != simdjson::SUCCESS) return fail(name, *value, "a string");
  target = text;
}

void JsonFields::read(std::string_view name, float& target, double min, double max) {
  const auto value = failed() ? std::nullopt : find(name);
  if (!value) return;
  double number = 0;
  const bool is_number = value->is_number() && value->get(number) == simdjson::SUCCESS;
  if (!is_number || !(number >= min && number <= max))
    return fail(name, *value, "a number from " + number_text(min) + " to " + number_text(max));
  target = static_cast<float>(number);
}

std::optional<std::int64_t> JsonFields::integer(std::string_view name, std::int64_t min,
                                                std::int64_t max) {
  const auto value = failed() ? std::nullopt : find(name);
  if (!value) return std::nullopt;
  const auto number = whole_number(*value);
  if (number && *number >= min && *number <= max) return number;
  const std::string range = max == std::numeric_limits<std::int64_t>::max()
                                ? "of at least " + std::to_string(min)
                                : "from " + std::to_string(min) + " to " + std::to_string(max);
  fail(name, *value,
       min == std::numeric_limits<std::int64_t>::min() ? "a whole number of 64 bits"
                                                       : "a whole number " + range);
  return std::nullopt;
}

std::optional<simdjson::dom::array> JsonFields::array(std::string_view name) {
  const auto value = failed() ? std::nullopt : find(name);
  if (!value) return std::nullopt;
  simdjson::dom::array result;
  if (value->get(result) == simdjson::SUCCESS) return result;
  fail(name, *value, "a list");
  return std::nullopt;
}

std::optional<JsonFields> JsonFields::object(std::string_view name) {
  const auto value = failed() ? std::nullopt : find(name);
  if (!value) return std::nullopt;
  simdjson::dom::object result;
  if (value->get(result) == simdjson::SUCCESS) return JsonFields(result, full_name(name) + ".");
  fail(name, *value, "an object");
  return std::nullopt;
}

void JsonFields::fail(ApiError error) {
  if (!error_) error_ = std::move(error);
}

void JsonFields::fail_with(const JsonFields& part) {
  if (part.error_) fail(*part.error_);
}

void JsonFields::fail(std::string_view name, element found, const std::string& right) {
  const std::string full = full_name(name);
  fail(invalid_field(full, "`" + full + "` is " + shown_value(found) + "; it must be " + right));
}

}  // namespace thaw::coalescer
