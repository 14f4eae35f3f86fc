#include "engine/model/gguf_keys.h"

#include "engine/model/config.h"

namespace thaw::model {

int GgufKeys::required(const std::string& key, std::int64_t limit) {
  const auto value = find_int(key);
  if (!value) fail(Errc::kDataLoss, full(key) + " is missing or not an integer");
  return checked(key, value.value_or(1), limit);
}

int GgufKeys::optional(const std::string& key, std::int64_t fallback, std::int64_t limit) {
  return checked(key, find_int(key).value_or(fallback), limit);
}

double GgufKeys::real(const std::string& key, double fallback) {
  const double value = find_real(key).value_or(fallback);
  if (value > 0.0 && value <= kLargestReal) return value;
  fail(Errc::kDataLoss,
       full(key) + " is " + std::to_string(value) + "; a positive number is right");
  return 1.0;
}

std::optional<std::int64_t> GgufKeys::find_int(const std::string& key) const {
  return file_.get_int(full(key));
}

std::optional<double> GgufKeys::find_real(const std::string& key) const {
  return file_.get_float(full(key));
}

std::optional<std::string> GgufKeys::find_text(const std::string& key) const {
  const auto text = file_.get_string(full(key));
  if (!text) return std::nullopt;
  return std::string(text->substr(0, 64));
}

void GgufKeys::fail(Errc code, const std::string& what) {
  if (!error_) error_ = make_error(code, file_.path() + ": " + what);
}

int GgufKeys::checked(const std::string& key, std::int64_t value, std::int64_t limit) {
  if (value >= 1 && value <= limit) return static_cast<int>(value);
  fail(Errc::kDataLoss, full(key) + " is " + std::to_string(value) + "; 1 to " +
                            std::to_string(limit) + " is right");
  return 1;
}

}  // namespace thaw::model
