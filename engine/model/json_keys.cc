#include "engine/model/json_keys.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "engine/model/config.h"

namespace thaw::model {

JsonKeys::JsonKeys(nlohmann::json object, std::string where)
    : object_(std::move(object)), where_(std::move(where)) {}

Result<JsonKeys> JsonKeys::parse(const std::string& text, const std::string& where) {
  nlohmann::json object = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) return make_error(Errc::kDataLoss, where + ": this is no JSON object");
  return JsonKeys(std::move(object), where);
}

int JsonKeys::integer(const std::string& key, std::int64_t limit,
                      std::optional<std::int64_t> fallback) {
  const nlohmann::json* found = find(key);
  std::optional<std::int64_t> value = fallback;
  if (found != nullptr) {
    if (!found->is_number_integer()) {
      wrong_kind(key, "an integer");
      return 1;
    }
    value = found->get<std::int64_t>();
  }
  if (!value) {
    fail(Errc::kDataLoss, key + " is missing");
    return 1;
  }
  if (*value < 1 || *value > limit) {
    fail(Errc::kDataLoss,
         key + " is " + std::to_string(*value) + "; 1 to " + std::to_string(limit) + " is right");
    return 1;
  }
  return static_cast<int>(*value);
}

double JsonKeys::real(const std::string& key, std::optional<double> fallback) {
  const std::optional<double> value = has(key) ? number(key) : fallback;
  if (!value && !has(key)) fail(Errc::kDataLoss, key + " is missing");
  if (!value) return 1.0;
  if (*value > 0.0 && *value <= kLargestReal) return *value;
  fail(Errc::kDataLoss, key + " is " + std::to_string(*value) + "; a positive number is right");
  return 1.0;
}

bool JsonKeys::flag(const std::string& key, bool fallback) {
  const nlohmann::json* found = find(key);
  if (found == nullptr) return fallback;
  if (!found->is_boolean()) {
    wrong_kind(key, "true or false");
    return fallback;
  }
  return found->get<bool>();
}

std::string JsonKeys::text(const std::string& key, const std::string& fallback) {
  const nlohmann::json* found = find(key);
  if (found == nullptr) return fallback;
  if (!found->is_string()) {
    wrong_kind(key, "a text");
    return fallback;
  }
  return found->get<std::string>().substr(0, 64);
}

std::optional<std::vector<std::int64_t>> JsonKeys::integers(const std::string& key) {
  const nlohmann::json* found = find(key);
  if (found == nullptr) return std::nullopt;
  const auto is_integer = [](const nlohmann::json& item) { return item.is_number_integer(); };
  if (!found->is_array() || !std::ranges::all_of(*found, is_integer)) {
    wrong_kind(key, "an array of integers");
    return std::nullopt;
  }
  return found->get<std::vector<std::int64_t>>();
}

std::optional<std::vector<std::string>> JsonKeys::texts(const std::string& key) {
  const nlohmann::json* found = find(key);
  if (found == nullptr) return std::nullopt;
  const auto is_text = [](const nlohmann::json& item) { return item.is_string(); };
  if (!found->is_array() || !std::ranges::all_of(*found, is_text)) {
    wrong_kind(key, "an array of texts");
    return std::nullopt;
  }
  return found->get<std::vector<std::string>>();
}

std::vector<TokenId> JsonKeys::token_ids(const std::string& key) {
  const nlohmann::json* found = find(key);
  std::vector<std::int64_t> ids;
  if (found != nullptr && found->is_number_integer()) {
    ids.push_back(found->get<std::int64_t>());
  } else if (auto several = integers(key)) {
    ids = std::move(*several);
  }
  std::vector<TokenId> tokens;
  for (const std::int64_t id : ids) {
    if (id < 0 || id > std::numeric_limits<TokenId>::max()) {
      fail(Errc::kDataLoss, key + " is " + std::to_string(id) + "; a token id is right");
      return {};
    }
    tokens.push_back(static_cast<TokenId>(id));
  }
  return tokens;
}

std::optional<double> JsonKeys::number(const std::string& key) {
  const nlohmann::json* found = find(key);
  if (found == nullptr) return std::nullopt;
  if (!found->is_number()) {
    wrong_kind(key, "a number");
    return std::nullopt;
  }
  return found->get<double>();
}

std::optional<nlohmann::json> JsonKeys::object(const std::string& key) {
  const nlohmann::json* found = find(key);
  if (found == nullptr) return std::nullopt;
  if (!found->is_object()) {
    wrong_kind(key, "an object");
    return std::nullopt;
  }
  return *found;
}

void JsonKeys::fail(Errc code, const std::string& what) {
  if (!error_) error_ = make_error(code, where_ + ": " + what);
}

const nlohmann::json* JsonKeys::find(const std::string& key) const {
  const auto found = object_.find(key);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

void JsonKeys::wrong_kind(const std::string& key, const char* right) {
  fail(Errc::kDataLoss,
       key + " is " + find(key)->dump().substr(0, 64) + "; " + right + " is right");
}

}  // namespace thaw::model
