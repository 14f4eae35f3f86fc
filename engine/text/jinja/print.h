#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "engine/text/jinja/value.h"

namespace thaw::text::jinja {

/// Python's str(value). Text from within keeps its origin; what printing itself adds (quotes,
/// brackets, digits) counts as user text.
Text to_text(const Value& value);
void append_text(Text& out, const Value& value);
/// Python's repr(value).
void append_repr(Text& out, const Value& value);
std::string float_repr(double value);
std::string int_repr(Int value);

struct JsonStyle {
  bool ensure_ascii = false;
  bool sort_keys = false;
  std::optional<std::string> indent;  ///< one level's worth; none: a single line
  std::string item_separator = ", ";
  std::string key_separator = ": ";
};

/// json.dumps. Errors: TemplateError for what JSON cannot hold.
Text to_json(const Value& value, const JsonStyle& style);

/// &, <, >, ' and " as HTML entities, as markupsafe does it.
Text escape_html(const Text& text);

}  // namespace thaw::text::jinja
