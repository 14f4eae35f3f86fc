#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "coalescer/openai/api_error.h"

namespace thaw::coalescer {

struct RequestLimits {
  std::uint32_t max_header_bytes = 32U << 10;
  std::uint32_t max_headers = 128;
  std::uint64_t max_body_bytes = 32U << 20;
};

/// What the server looks at in a request.
struct RequestHead {
  std::string method;
  std::string path;  ///< without the query
  std::string query;  ///< what follows the question mark
  std::string authorization;
  std::string api_key;  ///< `x-api-key`
  bool has_anthropic_version = false;
  std::string origin;  ///< of the page, where a browser asks
  std::string preflight_method;  ///< `Access-Control-Request-Method`
  std::string preflight_headers;  ///< `Access-Control-Request-Headers`
  std::string content_encoding;
  std::string expect;  ///< "100-continue" in lower case, anything else as it came
  bool keep_alive = true;
  bool http_1_0 = false;
  bool has_body = false;
  std::optional<std::uint64_t> content_length;  ///< absent for chunked bodies too
};

/// Parses one HTTP/1.x request from bytes as they arrive; the one place that knows Boost.Beast.
class RequestReader {
 public:
  enum class State : std::uint8_t {
    kHead,  ///< the head is not complete yet
    kBody,  ///< head() is valid, the body is not complete yet
    kDone,
    kFailed,  ///< error() says why; the connection cannot be used any more
  };

  explicit RequestReader(const RequestLimits& limits);
  ~RequestReader();
  RequestReader(const RequestReader&) = delete;
  RequestReader& operator=(const RequestReader&) = delete;

  /// Takes what it can from the front of `bytes` and erases that. Stops once after the head, so
  /// that a request can be refused before its body is read. What follows the request stays in
  /// `bytes`.
  State feed(std::string& bytes);

  State state() const { return state_; }
  /// After a failure, as much as came.
  const RequestHead& head() const { return head_; }
  const ApiError& error() const { return error_; }
  std::uint64_t body_size() const;
  std::string take_body();

 private:
  struct Parser;
  void fail(int status, std::string message);
  void read_head();
  /// What has been parsed of it.
  void read_fields();

  RequestLimits limits_;
  std::unique_ptr<Parser> parser_;
  State state_ = State::kHead;
  RequestHead head_;
  ApiError error_;
};

}  // namespace thaw::coalescer
