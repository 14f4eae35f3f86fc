#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "coalescer/openai/api_error.h"

namespace thaw::coalescer {

/// Whose words an answer is in.
enum class ApiDialect : std::uint8_t { kOpenAi, kAnthropic };

/// By the path; /v1/models is in both APIs, and only Anthropic's clients say which version they
/// speak.
ApiDialect dialect_of(std::string_view path, bool has_anthropic_version);

/// A whole answer.
struct HttpReply {
  int status = 200;
  std::string content_type = "application/json";
  std::string body;
  std::vector<std::pair<std::string, std::string>> headers;
  /// What `body` says in OpenAI's words, for who speaks otherwise.
  std::optional<ApiError> error = std::nullopt;
};

/// How an answer goes out on a connection.
struct ReplyMode {
  bool keep_alive = true;
  bool http_1_0 = false;
  bool head_only = false;  ///< the method was HEAD
  ApiDialect dialect = ApiDialect::kOpenAi;
  std::string request_id = {};  ///< names an answer that has no id of its own; "": nothing does
  std::string origin = {};  ///< of the page that may read it; empty: no page asks, or none may
};

/// RFC 9110, 15: "Not Found".
const char* reason_phrase(int status);

HttpReply error_reply(const ApiError& error);
/// A 200 with JSON.
HttpReply json_reply(std::string body);

/// The bytes of an answer.
std::string reply_bytes(const HttpReply& reply, const ReplyMode& mode);

/// The head of a server-sent event stream: chunked, or up to the connection's end in HTTP/1.0.
std::string stream_head(const ReplyMode& mode, std::string_view request_id);

/// One chunk of a chunked body; `data` itself in HTTP/1.0. Empty data gives nothing.
std::string stream_chunk(const ReplyMode& mode, std::string data);
std::string stream_end(const ReplyMode& mode);

}  // namespace thaw::coalescer
