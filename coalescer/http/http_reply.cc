#include "coalescer/http/http_reply.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <ctime>

#include "coalescer/openai/messages_error.h"

namespace thaw::coalescer {

const char* reason_phrase(int status) {
  switch (status) {
    case 200:
      return "OK";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 403:
      return "Forbidden";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 408:
      return "Request Timeout";
    case 409:
      return "Conflict";
    case 413:
      return "Content Too Large";
    case 415:
      return "Unsupported Media Type";
    case 417:
      return "Expectation Failed";
    case 422:
      return "Unprocessable Content";
    case 429:
      return "Too Many Requests";
    case 431:
      return "Request Header Fields Too Large";
    case 500:
      return "Internal Server Error";
    case 503:
      return "Service Unavailable";
    case 504:
      return "Gateway Timeout";
    default:
      return "Unknown";
  }
}

namespace {

constexpr std::string_view kRequestId = "x-request-id";

/// `path` is `base` or below it.
bool is_below(std::string_view path, std::string_view base) {
  return path.starts_with(base) && (path.size() == base.size() || path[base.size()] == '/');
}

/// "Date: ..." for the current second. RFC 9110, 5.6.7.
std::string date_line() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  std::array<char, 64> text{};
  const std::size_t length =
      std::strftime(text.data(), text.size(), "Date: %a, %d %b %Y %H:%M:%S GMT\r\n", &parts);
  return {text.data(), length};
}

std::string status_line(int status, const ReplyMode& mode) {
  std::string out = mode.http_1_0 ? "HTTP/1.0 " : "HTTP/1.1 ";
  out += std::to_string(status);
  out += ' ';
  out += reason_phrase(status);
  out += "\r\n";
  out += date_line();
  if (!mode.keep_alive)
    out += "Connection: close\r\n";
  else if (mode.http_1_0)
    out += "Connection: keep-alive\r\n";
  if (!mode.origin.empty()) {
    out += "Access-Control-Allow-Origin: " + mode.origin + "\r\nVary: Origin\r\n";
    out += "Access-Control-Expose-Headers: x-request-id, request-id, retry-after\r\n";
  }
  return out;
}

}  // namespace

ApiDialect dialect_of(std::string_view path, bool has_anthropic_version) {
  const bool anthropic =
      is_below(path, "/v1/messages") || (has_anthropic_version && is_below(path, "/v1/models"));
  return anthropic ? ApiDialect::kAnthropic : ApiDialect::kOpenAi;
}

HttpReply error_reply(const ApiError& error) {
  HttpReply reply;
  reply.status = error.status;
  reply.body = error_body(error);
  reply.error = error;
  if (error.retry_after.count() > 0) {
    const auto ms = error.retry_after.count();
    reply.headers.emplace_back("retry-after-ms", std::to_string(ms));
    reply.headers.emplace_back("Retry-After", std::to_string((ms + 999) / 1000));
  }
  if (error.retry_is_useless) reply.headers.emplace_back("x-should-retry", "false");
  if (error.status == 401) reply.headers.emplace_back("WWW-Authenticate", "Bearer");
  return reply;
}

HttpReply json_reply(std::string body) {
  HttpReply reply;
  reply.body = std::move(body);
  return reply;
}

std::string reply_bytes(const HttpReply& reply, const ReplyMode& mode) {
  const bool anthropic = mode.dialect == ApiDialect::kAnthropic;
  std::string error;
  if (anthropic && reply.error) error = message_error_body(*reply.error, mode.request_id);
  const std::string& body = error.empty() ? reply.body : error;
  std::string out = status_line(reply.status, mode);
  out += "Content-Type: " + reply.content_type + "\r\n";
  out += "Content-Length: " + std::to_string(body.size()) + "\r\n";
  const auto own =
      std::ranges::find(reply.headers, kRequestId, &std::pair<std::string, std::string>::first);
  const bool is_named = own != reply.headers.end();
  const std::string& id = is_named ? own->second : mode.request_id;
  for (const auto& [name, value] : reply.headers) {
    out += name;
    out += ": ";
    out += value;
    out += "\r\n";
  }
  if (!is_named && !id.empty()) out.append(kRequestId).append(": ").append(id).append("\r\n");
  if (anthropic) out += "request-id: " + id + "\r\n";
  out += "\r\n";
  if (!mode.head_only) out += body;
  return out;
}

std::string stream_head(const ReplyMode& mode, std::string_view request_id) {
  std::string out = status_line(200, mode);
  out += "Content-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\n";
  if (!mode.http_1_0) out += "Transfer-Encoding: chunked\r\n";
  out += kRequestId;
  out += ": ";
  out += request_id;
  if (mode.dialect == ApiDialect::kAnthropic) {
    out += "\r\nrequest-id: ";
    out += request_id;
  }
  out += "\r\n\r\n";
  return out;
}

std::string stream_chunk(const ReplyMode& mode, std::string data) {
  if (mode.http_1_0 || data.empty()) return data;
  std::array<char, 24> size{};
  std::snprintf(size.data(), size.size(), "%zx\r\n", data.size());
  return size.data() + std::move(data) + "\r\n";
}

std::string stream_end(const ReplyMode& mode) {
  return mode.http_1_0 ? "" : "0\r\n\r\n";
}

}  // namespace thaw::coalescer
