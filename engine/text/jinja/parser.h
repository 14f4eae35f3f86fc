#pragma once

#include <memory>
#include <string_view>

#include "engine/text/jinja/ast.h"

namespace thaw::text::jinja {

/// Parses a chat template. Left out of Jinja: what needs a loader (extends, include, import, block)
/// and recursive loops. Errors: TemplateError with line.
Template parse(std::string_view source);

}  // namespace thaw::text::jinja
