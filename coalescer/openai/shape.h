#pragma once

#include <simdjson.h>

#include <array>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "coalescer/openai/api_error.h"
#include "coalescer/openai/field.h"

namespace thaw::coalescer {

// Each body has one Shape: the names, types and bounds of its fields. Parsers pass what came
// through check_shape() before they read it, and the OpenAPI document is written from the same
// Shape, so neither says what the other does not. To describe a new endpoint: write the fields of
// its body as a constexpr array and its Shape in a shapes_*.cc, name it in shapes.h, call
// check_shape() where the body is parsed, and name both of its Shapes, of body and answer, in the
// endpoint's line of http/openapi.cc.

/// What an object needs beside the fields that it always needs.
struct ShapeRule {
  enum class Kind : std::uint8_t {
    kNone,
    kAtLeastOne,
    kExactlyOne,
    kUnless,  ///< the first must be there unless the second is the third; errors are found by hand
  };
  Kind kind = Kind::kNone;
  std::array<std::string_view, 4> names{};  ///< the first ones that are not empty
  bool counts_empty = true;  ///< "" and [] count as given
  std::string_view right{};  ///< the error's last words

  std::span<const std::string_view> given_names() const;
};

/// The fields of an object; where two parts have the same name, the first counts. What is not known
/// is ignored in requests and absent in answers.
struct Shape {
  std::string_view name{};  ///< in the document
  std::string_view about{};
  std::array<std::span<const Field>, 8> parts{};
  std::array<ShapeRule, 2> rules{};
  bool is_answer = false;  ///< has nothing else, and null only where it says so

  const Field* find(std::string_view name) const;
};

/// The server's own bounds.
struct ShapeLimits {
  std::int64_t max_choices = std::numeric_limits<std::int32_t>::max();
  std::int64_t vocab_size = std::numeric_limits<std::int32_t>::max();
  std::int64_t max_session_ttl = std::numeric_limits<std::int32_t>::max();
  std::int64_t num_slots = 1;

  std::int64_t most(const Field& field) const;
  bool operator==(const ShapeLimits&) const = default;
};

/// The first thing that is wrong with an object, named by its path below `prefix` ("trunk.");
/// nullopt where all is well. A few look-ups for each field that was sent.
std::optional<ApiError> check_shape(const Shape& shape, simdjson::dom::object object,
                                    const ShapeLimits& limits = {}, std::string_view prefix = "");

}  // namespace thaw::coalescer
