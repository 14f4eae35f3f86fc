#pragma once

#include <utility>

#include <nlohmann/json.hpp>

#include "coalescer/openai/shape.h"

namespace thaw::coalescer {

/// Writes shapes as JSON schemas (2020-12, the dialect of OpenAPI 3.1). A schema of an object goes
/// to `#/components/schemas` and is referred to by its name.
class ShapeSchemas {
 public:
  explicit ShapeSchemas(const ShapeLimits& limits) : limits_(limits) {}

  /// `{"$ref": ...}`
  nlohmann::ordered_json of(const Shape& shape);
  /// `is_answer`: null is allowed only where the field says so.
  nlohmann::ordered_json of(const Field& field, bool is_answer);
  /// Of what stands behind "?", where nothing is null.
  nlohmann::ordered_json parameter(const Field& field) { return value_of(field, false); }
  /// Everything that was referred to, by name.
  nlohmann::ordered_json take_components() { return std::move(components_); }

 private:
  nlohmann::ordered_json value_of(const Field& field, bool is_answer);
  /// Of an entry, which is null only where it says so.
  nlohmann::ordered_json item_of(const Field& field, bool is_answer);
  nlohmann::ordered_json object_of(const Shape& shape);

  const ShapeLimits& limits_;
  nlohmann::ordered_json components_ = nlohmann::ordered_json::object();
};

}  // namespace thaw::coalescer
