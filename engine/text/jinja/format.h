#pragma once

#include "engine/text/jinja/runtime.h"

namespace thaw::text::jinja {

/// str.format: fields {}, {0}, {name}, with .attribute and [item], !s and !r, and a format
/// specification of fill, alignment, sign, width, grouping by comma, precision and one of s d x X f
/// e g %. Errors: TemplateError for what str.format refuses and for other specifications.
Text format_braces(const Text& format, const Args& args);

}  // namespace thaw::text::jinja
