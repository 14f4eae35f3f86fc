#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "engine/base/result.h"

namespace thaw::kvsnap {

template <typename T>
nlohmann::ordered_json or_null(const std::optional<T>& value) {
  return value ? nlohmann::ordered_json(*value) : nlohmann::ordered_json(nullptr);
}

/// Reads keys of a JSON object that came from others; the first failure sticks. Unknown keys are
/// passed over. The object must outlive this.
class JsonKeys {
 public:
  JsonKeys(const nlohmann::json& object, std::string where)
      : object_(object), where_(std::move(where)) {
    if (!object_.is_object()) fail("it is no JSON object");
  }

  /// The key's value: strings, numbers that fit, lists of them. An error where it is missing or of
  /// another type.
  template <typename T>
  void read(const char* key, T& value) {
    if (error_) return;
    const auto found = object_.find(key);
    if (found == object_.end()) return fail(std::string(key) + " is missing");
    if (!holds<T>(*found))
      return fail(std::string(key) + " is " + shown(*found) + ", not " + name<T>());
    value = found->template get<T>();
  }
  /// The same where it may be missing or null: nothing then.
  template <typename T>
  void read(const char* key, std::optional<T>& value) {
    if (!has(key)) return;
    read(key, value.emplace());
  }
  /// The same where it may be missing or null: `value` stays as it is then.
  template <typename T>
  void read_or(const char* key, T& value) {
    if (has(key)) read(key, value);
  }
  /// Null where there is none.
  const nlohmann::json* find(const char* key) const {
    return has(key) ? &*object_.find(key) : nullptr;
  }

  void fail(const std::string& what) {
    if (!error_) error_ = make_error(Errc::kDataLoss, where_ + ": " + what);
  }
  /// As Result<void>; the first failure.
  Result<void> result() const { return error_ ? Result<void>(*error_) : Result<void>(); }

 private:
  template <typename T>
  struct IsList : std::false_type {};
  template <typename T>
  struct IsList<std::vector<T>> : std::true_type {};

  bool has(const char* key) const {
    if (error_) return false;
    const auto found = object_.find(key);
    return found != object_.end() && !found->is_null();
  }

  template <typename T>
  static bool holds(const nlohmann::json& value) {
    if constexpr (std::is_same_v<T, std::string>) {
      return value.is_string();
    } else if constexpr (IsList<T>::value) {
      if (!value.is_array()) return false;
      for (const nlohmann::json& item : value)
        if (!holds<typename T::value_type>(item)) return false;
      return true;
    } else if constexpr (std::is_floating_point_v<T>) {
      return value.is_number() && std::isfinite(value.get<T>());
    } else if constexpr (std::is_signed_v<T>) {
      if (value.is_number_unsigned()) {
        return value.get<std::uint64_t>() <=
               static_cast<std::uint64_t>(std::numeric_limits<T>::max());
      }
      return value.is_number_integer() &&
             value.get<std::int64_t>() >= std::numeric_limits<T>::min();
    } else {
      return value.is_number_unsigned() &&
             value.get<std::uint64_t>() <= std::numeric_limits<T>::max();
    }
  }

  template <typename T>
  static std::string name() {
    if constexpr (std::is_same_v<T, std::string>) {
      return "a text";
    } else if constexpr (IsList<T>::value) {
      return "such a list";
    } else if constexpr (std::is_floating_point_v<T>) {
      return "a finite number";
    } else {
      return "a whole number of up to " + std::to_string(std::numeric_limits<T>::max());
    }
  }

  static std::string shown(const nlohmann::json& value) {
    constexpr std::size_t kLongest = 40;
    if (value.is_structured()) return std::string("a ") + value.type_name();
    std::string text = value.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
    if (text.size() > kLongest) text = text.substr(0, kLongest) + "...";
    return text;
  }

  const nlohmann::json& object_;
  std::string where_;
  std::optional<Error> error_;
};

}  // namespace thaw::kvsnap
