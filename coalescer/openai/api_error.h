#pragma once

#include <chrono>
#include <string>
#include <variant>

#include "engine/base/error.h"

namespace thaw::coalescer {

/// A failure as an HTTP client sees it: a status and OpenAI's error object.
struct ApiError {
  int status = 400;
  std::string message;  ///< what was wrong, which value, what would be right
  std::string type = "invalid_request_error";
  std::string param;  ///< the field; empty gives null
  std::string code;  ///< empty gives null
  std::chrono::milliseconds retry_after{0};  ///< 0: no Retry-After header
  bool retry_is_useless = false;  ///< sends "x-should-retry: false"
};

/// What parsing gives: a value or the error to answer with.
template <typename T>
using ApiResult = std::variant<T, ApiError>;

/// 400 for one field.
ApiError invalid_field(std::string param, std::string message, std::string code = "");

/// 400 for a well-formed wish that this server cannot grant; code "unsupported".
ApiError unsupported_field(std::string param, std::string message);

/// The one table from our errors to HTTP. kCancelled and unknown codes are 500.
ApiError to_api_error(const Error& error);

/// `{"error": {"message", "type", "param", "code"}}`
std::string error_body(const ApiError& error);

}  // namespace thaw::coalescer
