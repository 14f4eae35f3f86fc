#include "coalescer/http/http_reply.h"

#include <array>
#include <cstdio>
#include <ctime>

namespace thaw::coalescer {
namespace {

const char* reason_phrase(int status) {
  switch (status) {
    case 200:
      return "OK";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
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
  return out;
}

}  // namespace

HttpReply error_reply(const ApiError& error) {
  HttpReply reply;
  reply.status = error.status;
  reply.body = error_body(error);
  if (error.retry_after.count() > 0) {
    const auto ms = error.retry_after.count();
    reply.headers.emplace_back("retry-after-ms", std::to_string(ms));
    reply.headers.emplace_back("Retry-After", std::to_string((ms + 999) / 1000));
  }
  if (error.retry_is_useless) reply.headers.emplace_back("x-should-retry", "false");
  if (error.status == 401) reply.headers.emplace_back("WWW-Authenticate", "Bearer");
  return reply;
}

std::string reply_bytes(const HttpReply& reply, const ReplyMode& mode) {
  std::string out = status_line(reply.status, mode);
  out += "Content-Type: " + reply.content_type + "\r\n";
  out += "Content-Length: " + std::to_string(reply.body.size()) + "\r\n";
  for (const auto& [name, value] : reply.headers) {
    out += name;
    out += ": ";
    out += value;
    out += "\r\n";
  }
  out += "\r\n";
  if (!mode.head_only) out += reply.body;
  return out;
}

std::string stream_head(const ReplyMode& mode, std::string_view request_id) {
  std::string out = status_line(200, mode);
  out += "Content-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\n";
  if (!mode.http_1_0) out += "Transfer-Encoding: chunked\r\n";
  out += "x-request-id: ";
  out += request_id;
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
