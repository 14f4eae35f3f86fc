#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "coalescer/openai/api_error.h"
#include "coalescer/openai/field.h"

namespace thaw::coalescer {

/// `%20` and the like become what they stand for (RFC 3986, 2.1); "+" stays one.
std::string percent_decode(std::string_view text);

/// What is done with a parameter that no field describes.
enum class OtherParameters : std::uint8_t { kRefused, kIgnored };

/// Reads what follows "?" in a path, and checks it. Lists have commas. `values` gets the decoded
/// text of each field, in their order; nullopt where it is left out. Errors: a value that does not
/// fit its field, a parameter that is not known where those are refused.
std::optional<ApiError> read_query(std::span<const Field> fields, OtherParameters others,
                                   std::string_view query,
                                   std::span<std::optional<std::string>> values);

/// A value of kWhole that read_query() found right; `standard` where it was left out.
std::int64_t whole_or(const std::optional<std::string>& value, std::int64_t standard);

}  // namespace thaw::coalescer
