#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "engine/text/jinja/ast.h"
#include "engine/text/jinja/text.h"

namespace thaw::text::jinja {

struct RenderContext {
  /// The value of a variable that the render was given, or nothing. Asked once for each name that
  /// the template mentions.
  std::function<std::optional<Value>(const std::string&)> variable;
  std::int64_t now_unix_seconds = 0;
  std::size_t max_work = 0;  ///< see Runtime::charge
};

/// Thread-safe: everything that changes lives in the call. Errors: TemplateError with line.
Text render(const Template& source, const RenderContext& context);

}  // namespace thaw::text::jinja
