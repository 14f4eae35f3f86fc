#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "coalescer/openai/api_error.h"

namespace thaw::coalescer {

/// One `name=value` of a query; the value is empty where there is no `=`.
struct QueryParameter {
  std::string_view name;
  std::string_view value;
};

/// Takes the next parameter off `query`; nothing at its end.
std::optional<QueryParameter> take_parameter(std::string_view& query);

/// "`name` is `value`; it must be <right>".
ApiError wrong_parameter(const QueryParameter& parameter, const std::string& right);

/// The value as a whole number of at least `min`; nothing where it is none.
std::optional<std::int64_t> whole_number(const QueryParameter& parameter, std::int64_t min);

/// How much a page holds, from 1 to `most`.
ApiResult<std::uint32_t> page_limit(const QueryParameter& parameter, std::uint32_t most);

/// `true` or `false`.
ApiResult<bool> true_or_false(const QueryParameter& parameter);

}  // namespace thaw::coalescer
