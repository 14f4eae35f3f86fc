#include "coalescer/openai/messages_error.h"

#include "coalescer/openai/json_text.h"

namespace thaw::coalescer {
namespace {

const char* type_of_status(int status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 404:
      return "not_found_error";
    case 413:
      return "request_too_large";
    case 429:
      return "rate_limit_error";
    case 503:
      return "overloaded_error";
    case 504:
      return "timeout_error";
    default:
      return status >= 500 ? "api_error" : "invalid_request_error";
  }
}

}  // namespace

std::string message_error_body(const ApiError& error, std::string_view request_id) {
  std::string out = R"({"type":"error","error":{"type":")";
  out += type_of_status(error.status);
  out += R"(","message":)";
  append_json_string(out, error.message);
  if (!error.code.empty() || !error.param.empty()) {
    out += R"(,"details":{"error_code":)";
    append_json_string_or_null(out, error.code);
    out += R"(,"param":)";
    append_json_string_or_null(out, error.param);
    out += '}';
  }
  out += R"(},"request_id":)";
  append_json_string_or_null(out, request_id);
  out += '}';
  return out;
}

}  // namespace thaw::coalescer
