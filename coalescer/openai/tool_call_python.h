#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "coalescer/openai/tool_call_reader.h"

namespace thaw::coalescer {

/// JSON text of the arguments in `a=1, b='x'`: Python literals (numbers, strings, True, False,
/// None, lists, tuples, dicts) and JSON's own words. A name that comes again counts the last time.
/// Nothing where it is anything else.
std::optional<std::string> keywords_to_json(std::string_view keywords);

/// `[f(a=1), g()]`, and what may stand around it.
std::unique_ptr<CallReader> make_pythonic_reader(bool tagged, CallSink* sink);

}  // namespace thaw::coalescer
