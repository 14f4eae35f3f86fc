#pragma once

#include <string>
#include <string_view>

#include "coalescer/openai/api_error.h"

namespace thaw::coalescer {

/// `{"type": "error", "error": {"type", "message"}, "request_id"}`: an error as clients of
/// Anthropic's API read it; its type follows from the status. Our code and field are its `details`.
/// Source: platform.claude.com/docs/en/api/errors
std::string message_error_body(const ApiError& error, std::string_view request_id);

}  // namespace thaw::coalescer
