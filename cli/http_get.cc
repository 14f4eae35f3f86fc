#include "cli/http_get.h"

#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>

namespace thaw::cli {
namespace {

namespace beast = boost::beast;
namespace http = beast::http;
namespace net = boost::asio;

struct UrlParts {
  std::string host;
  std::string port = "80";
  std::string target = "/";
};

Result<UrlParts> split_url(const std::string& url) {
  const std::string scheme = "http://";
  if (!url.starts_with(scheme)) {
    return make_error(Errc::kInvalidArgument, "URL is " + url + "; it must start with http://");
  }
  UrlParts parts;
  std::string rest = url.substr(scheme.size());
  if (const std::size_t slash = rest.find('/'); slash != std::string::npos) {
    parts.target = rest.substr(slash);
    rest.resize(slash);
  }
  if (const std::size_t colon = rest.rfind(':'); colon != std::string::npos) {
    parts.port = rest.substr(colon + 1);
    rest.resize(colon);
  }
  parts.host = rest;
  if (parts.host.empty())
    return make_error(Errc::kInvalidArgument, "URL is " + url + "; it has no host");
  return parts;
}

}  // namespace

Result<std::string> http_get(const std::string& url, const std::string& api_key,
                             std::chrono::seconds timeout) {
  auto parts = split_url(url);
  if (!parts) return parts.error();

  // Beast's timeouts work on asynchronous calls only, so each step runs the context to its end.
  net::io_context context;
  beast::error_code failure;
  net::ip::tcp::resolver resolver(context);
  const auto endpoints = resolver.resolve(parts->host, parts->port, failure);
  if (failure)
    return make_error(Errc::kUnavailable,
                      "cannot resolve " + parts->host + ": " + failure.message());
  beast::tcp_stream stream(context);
  const auto finish = [&] {
    context.restart();
    context.run();
  };
  const auto note = [&](beast::error_code error, auto&&...) { failure = error; };

  stream.expires_after(timeout);
  stream.async_connect(endpoints, note);
  finish();
  if (failure)
    return make_error(Errc::kUnavailable, "cannot reach " + url + ": " + failure.message());

  http::request<http::empty_body> request(http::verb::get, parts->target, 11);
  request.set(http::field::host, parts->host);
  if (!api_key.empty()) request.set(http::field::authorization, "Bearer " + api_key);
  http::async_write(stream, request, note);
  finish();
  if (failure)
    return make_error(Errc::kUnavailable, "cannot ask " + url + ": " + failure.message());

  beast::flat_buffer buffer;
  http::response<http::string_body> response;
  http::async_read(stream, buffer, response, note);
  finish();
  if (failure)
    return make_error(Errc::kUnavailable, "no answer from " + url + ": " + failure.message());
  if (response.result() != http::status::ok) {
    return make_error(Errc::kUnavailable, url + " answered " +
                                              std::to_string(response.result_int()) + ": " +
                                              response.body().substr(0, 300));
  }
  return std::move(response.body());
}

}  // namespace thaw::cli
