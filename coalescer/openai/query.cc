#include "coalescer/openai/query.h"

#include <charconv>

namespace thaw::coalescer {

std::optional<QueryParameter> take_parameter(std::string_view& query) {
  while (!query.empty() && query.front() == '&')
    query.remove_prefix(1);
  if (query.empty()) return std::nullopt;
  const std::string_view pair = query.substr(0, query.find('&'));
  query.remove_prefix(pair.size());
  QueryParameter parameter;
  parameter.name = pair.substr(0, pair.find('='));
  if (parameter.name.size() < pair.size()) parameter.value = pair.substr(parameter.name.size() + 1);
  return parameter;
}

ApiError wrong_parameter(const QueryParameter& parameter, const std::string& right) {
  const std::string name(parameter.name);
  return invalid_field(name, "`" + name + "` is `" + std::string(parameter.value.substr(0, 40)) +
                                 "`; it must be " + right);
}

std::optional<std::int64_t> whole_number(const QueryParameter& parameter, std::int64_t min) {
  const char* const begin = parameter.value.data();
  const char* const end = begin + parameter.value.size();
  std::int64_t number = 0;
  const auto [read, error] = std::from_chars(begin, end, number);
  if (error != std::errc() || read != end || number < min) return std::nullopt;
  return number;
}

ApiResult<std::uint32_t> page_limit(const QueryParameter& parameter, std::uint32_t most) {
  const auto limit = whole_number(parameter, 1);
  if (!limit || *limit > most)
    return wrong_parameter(parameter, "a whole number from 1 to " + std::to_string(most));
  return static_cast<std::uint32_t>(*limit);
}

ApiResult<bool> true_or_false(const QueryParameter& parameter) {
  if (parameter.value != "true" && parameter.value != "false")
    return wrong_parameter(parameter, "true or false");
  return parameter.value == "true";
}

}  // namespace thaw::coalescer
