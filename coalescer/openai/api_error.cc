#include "coalescer/openai/api_error.h"

#include <utility>

#include "coalescer/openai/json_text.h"

namespace thaw::coalescer {
namespace {

ApiError server_error(int status, std::string message, std::string code) {
  ApiError result;
  result.status = status;
  result.message = std::move(message);
  result.type = "server_error";
  result.code = std::move(code);
  return result;
}

}  // namespace

ApiError invalid_field(std::string param, std::string message, std::string code) {
  ApiError result;
  result.message = std::move(message);
  result.param = std::move(param);
  result.code = std::move(code);
  return result;
}

ApiError unsupported_field(std::string param, std::string message) {
  return invalid_field(std::move(param), std::move(message), "unsupported");
}

ApiError to_api_error(const Error& error) {
  ApiError result;
  switch (error.code) {
    case Errc::kInvalidArgument:
      return invalid_field("", error.message);
    case Errc::kUnsupported:
      return unsupported_field("", error.message);
    case Errc::kUnauthenticated:
      result = invalid_field("", error.message, "invalid_api_key");
      result.status = 401;
      return result;
    case Errc::kNotFound:
      result = invalid_field("", error.message, "not_found");
      result.status = 404;
      return result;
    case Errc::kResourceExhausted:
      result = invalid_field("", error.message, "rate_limit_exceeded");
      result.status = 429;
      result.type = "rate_limit_error";
      result.retry_after = std::chrono::milliseconds(500);
      return result;
    case Errc::kUnavailable:
      result = server_error(503, error.message, "unavailable");
      result.retry_after = std::chrono::milliseconds(500);
      return result;
    case Errc::kDeadlineExceeded:
      result = server_error(504, error.message, "deadline_exceeded");
      result.retry_is_useless = true;
      return result;
    default:
      // A defect or a broken worker: the pool has retried already, so the client need not.
      result = server_error(500, error.message, errc_name(error.code));
      result.retry_is_useless = true;
      return result;
  }
}

std::string error_body(const ApiError& error) {
  std::string out = R"({"error":{"message":)";
  append_json_string(out, error.message);
  out += R"(,"type":)";
  append_json_string(out, error.type);
  out += R"(,"param":)";
  append_json_string_or_null(out, error.param);
  out += R"(,"code":)";
  append_json_string_or_null(out, error.code);
  out += "}}";
  return out;
}

}  // namespace thaw::coalescer
