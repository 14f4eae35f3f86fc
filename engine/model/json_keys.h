#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "engine/base/result.h"
#include "engine/base/types.h"

namespace thaw::model {

/// Reads the keys of one JSON object, a null being as good as an absent key. The first error
/// sticks: read everything, then ask for error().
class JsonKeys {
 public:
  /// `where` begins every message: path and name of the text.
  JsonKeys(nlohmann::json object, std::string where);
  /// An error where `text` is no JSON object.
  static Result<JsonKeys> parse(const std::string& text, const std::string& where);

  bool has(const std::string& key) const { return find(key) != nullptr; }
  /// Also where it is null.
  bool mentions(const std::string& key) const { return object_.contains(key); }
  /// Sets an integer that is absent.
  void set_default(const std::string& key, std::int64_t value) {
    if (!has(key)) object_[key] = value;
  }
  /// An integer in 1 .. limit; required without a fallback.
  int integer(const std::string& key, std::int64_t limit,
              std::optional<std::int64_t> fallback = std::nullopt);
  /// A positive number; required without a fallback.
  double real(const std::string& key, std::optional<double> fallback = std::nullopt);
  bool flag(const std::string& key, bool fallback);
  std::string text(const std::string& key, const std::string& fallback);
  /// Integers or texts of an array; nothing where the key is absent.
  std::optional<std::vector<std::int64_t>> integers(const std::string& key);
  std::optional<std::vector<std::string>> texts(const std::string& key);
  /// Token ids: one, or an array of them; empty where the key is absent.
  std::vector<TokenId> token_ids(const std::string& key);
  /// Any number; nothing where the key is absent.
  std::optional<double> number(const std::string& key);
  /// An object of its own; nothing where the key is absent.
  std::optional<nlohmann::json> object(const std::string& key);

  void fail(Errc code, const std::string& what);
  const std::optional<Error>& error() const { return error_; }

 private:
  const nlohmann::json* find(const std::string& key) const;
  void wrong_kind(const std::string& key, const char* right);

  nlohmann::json object_;
  std::string where_;
  std::optional<Error> error_;
};

}  // namespace thaw::model
