#include "cli/http_get.h"

#include <optional>

#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <nlohmann/json.hpp>

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

/// What the server says went wrong, where it says it as OpenAI's API does.
std::string message_of(const std::string& body) {
  constexpr std::size_t kLongest = 300;
  const auto parsed = nlohmann::json::parse(body, nullptr, false);
  if (parsed.is_object() && parsed.contains("error") && parsed["error"].is_object()) {
    const auto& message = parsed["error"].value("message", nlohmann::json());
    if (message.is_string()) return message.get<std::string>().substr(0, kLongest);
  }
  return body.substr(0, kLongest);
}

/// `json`: nothing for a GET.
Result<std::string> exchange(const std::string& url, const std::optional<std::string>& json,
                             const std::string& api_key, std::chrono::seconds timeout) {
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

  http::request<http::string_body> request(json ? http::verb::post : http::verb::get, parts->target,
                                           11);
  request.set(http::field::host, parts->host);
  if (json) {
    request.set(http::field::content_type, "application/json");
    request.body() = *json;
    request.prepare_payload();
  }
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
  if (http::to_status_class(response.result()) != http::status_class::successful) {
    const Errc code =
        response.result() == http::status::not_found ? Errc::kNotFound : Errc::kUnavailable;
    return make_error(code, url + " answered " + std::to_string(response.result_int()) + ": " +
                                message_of(response.body()));
  }
  return std::move(response.body());
}

}  // namespace

Result<std::string> http_get(const std::string& url, const std::string& api_key,
                             std::chrono::seconds timeout) {
  return exchange(url, std::nullopt, api_key, timeout);
}

Result<std::string> http_post(const std::string& url, const std::string& json,
                              const std::string& api_key, std::chrono::seconds timeout) {
  return exchange(url, json, api_key, timeout);
}

}  // namespace thaw::cli
