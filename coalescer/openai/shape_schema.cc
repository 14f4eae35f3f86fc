#include "coalescer/openai/shape_schema.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>

namespace thaw::coalescer {
namespace {

using nlohmann::ordered_json;

constexpr std::int64_t kUnbounded = std::numeric_limits<std::int64_t>::max();

/// The JSON types that a value may have.
ordered_json types_of(const Field& field) {
  switch (field.kind) {
    case ValueKind::kBoolean:
      return {"boolean"};
    case ValueKind::kString:
      return {"string"};
    case ValueKind::kWhole:
      return {"integer"};
    case ValueKind::kNumber:
      return {"number"};
    case ValueKind::kList:
      return {"array"};
    case ValueKind::kMap:
    case ValueKind::kObject:
      return {"object"};
    case ValueKind::kOneOf: {
      ordered_json out = ordered_json::array();
      for (const Field& option : field.options)
        for (const auto& type : types_of(option))
          if (std::find(out.begin(), out.end(), type) == out.end()) out.push_back(type);
      return out;
    }
    default:
      return {"string", "number", "boolean", "array", "object"};
  }
}

void add_size(ordered_json& schema, const Field& field, const char* least, const char* most,
              const ShapeLimits& limits) {
  if (field.least > 0) schema[least] = field.least;
  if (limits.most(field) != kUnbounded) schema[most] = limits.most(field);
}

void allow_null(ordered_json& schema) {
  if (schema.contains("const")) {
    schema["enum"] = {schema["const"], nullptr};
    schema.erase("const");
  } else if (schema.contains("$ref")) {
    schema = {{"anyOf", {schema, {{"type", "null"}}}}};
  } else if (schema.contains("anyOf")) {
    schema["anyOf"].push_back({{"type", "null"}});
  } else if (schema.contains("type") && schema["type"] != "null") {
    schema["type"] = {schema["type"], "null"};
    if (schema.contains("enum")) schema["enum"].push_back(nullptr);
  }
}

/// A name is there, with a value that counts.
ordered_json given(const Shape& shape, std::string_view name, bool counts_empty) {
  const Field& field = *shape.find(name);
  ordered_json value = {{"type", types_of(field)}};
  if (!counts_empty && field.kind == ValueKind::kString) value["minLength"] = 1;
  if (!counts_empty && field.kind == ValueKind::kList) value["minItems"] = 1;
  return {{"required", {name}}, {"properties", {{name, std::move(value)}}}};
}

ordered_json rule_of(const Shape& shape, const ShapeRule& rule) {
  if (rule.kind == ShapeRule::Kind::kUnless) {
    ordered_json other;
    other["properties"][std::string(rule.names[1])] = {{"const", rule.names[2]}};
    other["required"] = {rule.names[1]};
    return {{"anyOf", {{{"required", {rule.names[0]}}}, std::move(other)}}};
  }
  ordered_json options = ordered_json::array();
  for (const std::string_view name : rule.given_names())
    options.push_back(given(shape, name, rule.counts_empty));
  const bool one = rule.kind == ShapeRule::Kind::kExactlyOne;
  return {{one ? "oneOf" : "anyOf", std::move(options)}};
}

}  // namespace

ordered_json ShapeSchemas::of(const Shape& shape) {
  const std::string name(shape.name);
  if (!components_.contains(name)) {
    components_[name] = nullptr;  // ends recursion
    components_[name] = object_of(shape);
  }
  return {{"$ref", "#/components/schemas/" + name}};
}

ordered_json ShapeSchemas::of(const Field& field, bool is_answer) {
  ordered_json schema = value_of(field, is_answer);
  if (is_answer ? field.may_be_null : !field.is_needed) allow_null(schema);
  if (!field.about.empty()) schema["description"] = field.about;
  return schema;
}

ordered_json ShapeSchemas::value_of(const Field& field, bool is_answer) {
  ordered_json schema = ordered_json::object();
  switch (field.kind) {
    case ValueKind::kAny:
      break;
    case ValueKind::kBoolean:
      if (field.most == 0)
        schema["const"] = false;
      else
        schema["type"] = "boolean";
      break;
    case ValueKind::kString:
      schema["type"] = "string";
      add_size(schema, field, "minLength", "maxLength", limits_);
      if (!field.pattern.empty()) schema["pattern"] = field.pattern;
      for (const std::string_view word : field.words)
        schema["enum"].push_back(word);
      break;
    case ValueKind::kWhole:
      schema["type"] = "integer";
      schema["minimum"] = field.least;
      if (limits_.most(field) != kUnbounded || field.least < 0)
        schema["maximum"] = limits_.most(field);
      break;
    case ValueKind::kNumber:
      schema["type"] = "number";
      if (std::isfinite(field.minimum))
        schema[field.is_above ? "exclusiveMinimum" : "minimum"] = field.minimum;
      if (std::isfinite(field.maximum)) schema["maximum"] = field.maximum;
      break;
    case ValueKind::kList:
      schema["type"] = "array";
      schema["items"] = item_of(*field.item, is_answer);
      add_size(schema, field, "minItems", "maxItems", limits_);
      break;
    case ValueKind::kMap:
      schema["type"] = "object";
      if (field.item->kind != ValueKind::kAny)
        schema["additionalProperties"] = item_of(*field.item, is_answer);
      if (!field.pattern.empty()) schema["propertyNames"] = {{"pattern", field.pattern}};
      add_size(schema, field, "minProperties", "maxProperties", limits_);
      break;
    case ValueKind::kObject:
      return of(*field.shape);
    case ValueKind::kOneOf:
      schema["anyOf"] = ordered_json::array();
      for (const Field& option : field.options)
        schema["anyOf"].push_back(item_of(option, is_answer));
      break;
    case ValueKind::kNothing:
      schema["type"] = "null";
      break;
  }
  return schema;
}

ordered_json ShapeSchemas::item_of(const Field& field, bool is_answer) {
  ordered_json schema = value_of(field, is_answer);
  if (field.may_be_null) allow_null(schema);
  if (!field.about.empty()) schema["description"] = field.about;
  return schema;
}

ordered_json ShapeSchemas::object_of(const Shape& shape) {
  ordered_json schema = {{"type", "object"}};
  if (!shape.about.empty()) schema["description"] = shape.about;
  ordered_json needed = ordered_json::array();
  schema["properties"] = ordered_json::object();
  for (const auto& part : shape.parts) {
    for (const Field& field : part) {
      if (schema["properties"].contains(field.name)) continue;
      schema["properties"][std::string(field.name)] = of(field, shape.is_answer);
      if (field.is_needed) needed.push_back(field.name);
    }
  }
  if (!needed.empty()) schema["required"] = std::move(needed);
  if (shape.is_answer) schema["additionalProperties"] = false;
  ordered_json rules = ordered_json::array();
  for (const ShapeRule& rule : shape.rules)
    if (rule.kind != ShapeRule::Kind::kNone) rules.push_back(rule_of(shape, rule));
  if (rules.size() == 1) schema.update(rules.front());
  if (rules.size() > 1) schema["allOf"] = std::move(rules);
  return schema;
}

}  // namespace thaw::coalescer
