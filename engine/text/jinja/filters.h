#pragma once

#include <string_view>
#include <utility>
#include <vector>

#include "engine/text/jinja/runtime.h"

namespace thaw::text::jinja {

/// The filters on lists, dicts and iterators, by name.
const std::vector<std::pair<std::string_view, FilterFunction>>& sequence_filters();

}  // namespace thaw::text::jinja
