#pragma once

#include <simdjson.h>

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "coalescer/openai/api_error.h"
#include "engine/base/types.h"

namespace thaw::coalescer {

/// Deepest nesting that is accepted.
inline constexpr std::size_t kMaxJsonDepth = 100;

/// Bounds of fields that have no closer one.
inline constexpr std::int64_t kMaxInt32 = std::numeric_limits<std::int32_t>::max();
inline constexpr std::int64_t kMaxInt64 = std::numeric_limits<std::int64_t>::max();
inline constexpr std::int64_t kMinInt64 = std::numeric_limits<std::int64_t>::min();

/// A parsed body; keeps the memory that its elements point into.
class JsonBody {
 public:
  /// Errors: not JSON, invalid UTF-8, nested too deeply, not an object. Each says where or what.
  std::optional<ApiError> parse(std::string_view text, std::size_t max_depth = kMaxJsonDepth);
  simdjson::dom::object root() const { return root_; }

 private:
  simdjson::dom::parser parser_;
  simdjson::dom::object root_;
};

/// A value as an error shows it: short, whatever the client sent.
std::string shown_value(simdjson::dom::element value);

/// The element as a whole number; nullopt where it is none or does not fit. 3.0 counts as one.
std::optional<std::int64_t> whole_number(simdjson::dom::element value);

/// 0.01, 2
std::string number_text(double value);

/// "a string", "null", ...
const char* json_type_name(simdjson::dom::element element);

/// The same value for the template interpreter; keeps the order of keys.
nlohmann::ordered_json to_ordered_json(simdjson::dom::element element);
nlohmann::ordered_json to_ordered_json(simdjson::dom::object object);

/// Adds a member behind the others of an object. The key must be new: long objects are not searched
/// for it, as ordered_json's own insertion does each time. They come from tools with very many
/// properties, or from an attack.
void append_member(nlohmann::ordered_json& object, std::string_view key,
                   nlohmann::ordered_json value);

/// The arguments of a call as templates read them: an object where the text is one or blank.
nlohmann::ordered_json open_arguments(const std::string& text);

/// A token id, or nothing where the element is no integer in [0, vocab_size).
std::optional<TokenId> as_token_id(simdjson::dom::element element, int vocab_size);

/// A list of token ids, or an error that names the first odd element.
ApiResult<std::vector<TokenId>> token_list(simdjson::dom::array list, const std::string& name,
                                           int vocab_size);

/// "messages[2]": an element in errors.
inline std::string item_name(std::string_view list, std::size_t index) {
  return std::string(list) + "[" + std::to_string(index) + "]";
}

/// Reads the fields of an object. The first error sticks and everything after it is skipped. A
/// field that is absent or null leaves its target untouched.
class JsonFields {
 public:
  /// `prefix` stands before names in errors ("stream_options.").
  explicit JsonFields(simdjson::dom::object object, std::string prefix = "")
      : object_(object), prefix_(std::move(prefix)) {}

  /// The element; nullopt where it is absent or null.
  std::optional<simdjson::dom::element> find(std::string_view name) const;

  void read(std::string_view name, bool& target);
  void read(std::string_view name, std::string& target);
  /// Bounds are for what has no Shape that was checked before.
  void read(std::string_view name, float& target,
            double min = std::numeric_limits<double>::lowest(),
            double max = std::numeric_limits<double>::max());
  /// Whole numbers. Target types: the integers used below.
  template <typename Integer>
  void read(std::string_view name, Integer& target, std::int64_t min = kMinInt64,
            std::int64_t max = kMaxInt64) {
    if (const auto value = integer(name, min, max)) target = static_cast<Integer>(*value);
  }
  std::optional<std::int64_t> integer(std::string_view name, std::int64_t min = kMinInt64,
                                      std::int64_t max = kMaxInt64);
  std::optional<simdjson::dom::array> array(std::string_view name);
  std::optional<JsonFields> object(std::string_view name);

  void fail(ApiError error);
  /// Takes the error of an object read from this one, if it has any.
  void fail_with(const JsonFields& part);
  /// "`name` is <value>; it must be <right>".
  void fail(std::string_view name, simdjson::dom::element found, const std::string& right);
  bool failed() const { return error_.has_value(); }
  const std::optional<ApiError>& error() const { return error_; }
  simdjson::dom::object raw() const { return object_; }
  std::string full_name(std::string_view name) const { return prefix_ + std::string(name); }

 private:
  simdjson::dom::object object_;
  std::string prefix_;
  std::optional<ApiError> error_;
};

}  // namespace thaw::coalescer
