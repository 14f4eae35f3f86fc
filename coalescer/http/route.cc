#include "coalescer/http/route.h"

#include <array>
#include <charconv>

namespace thaw::coalescer {
namespace {

struct Entry {
  std::string_view path;
  Route route;
};

const std::array<Entry, 10>& table() {
  static const std::array<Entry, 10> entries = {{
      {"/v1/chat/completions", {Endpoint::kChat, "/v1/chat/completions", true, true, ""}},
      {"/v1/completions", {Endpoint::kCompletions, "/v1/completions", true, true, ""}},
      {"/tokenize", {Endpoint::kTokenize, "/tokenize", true, true, ""}},
      {"/detokenize", {Endpoint::kDetokenize, "/detokenize", true, true, ""}},
      {"/v1/models", {Endpoint::kModels, "/v1/models", true, false, ""}},
      {"/health", {Endpoint::kHealth, "/health", false, false, ""}},
      {"/version", {Endpoint::kVersion, "/version", false, false, ""}},
      {"/metrics", {Endpoint::kMetrics, "/metrics", false, false, ""}},
      {"/v1/forks/recent", {Endpoint::kForksRecent, "/v1/forks/recent", true, false, ""}},
      {"/admin/pool", {Endpoint::kAdminPool, "/admin/pool", true, false, ""}},
  }};
  return entries;
}

/// Bytes of a client's path that an error repeats.
constexpr std::size_t kMaxShown = 100;
constexpr std::string_view kModelPrefix = "/v1/models/";

std::string percent_decode(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    int byte = 0;
    if (text[i] == '%' && i + 2 < text.size() &&
        std::from_chars(&text[i + 1], &text[i + 1] + 2, byte, 16).ptr == &text[i + 1] + 2) {
      out += static_cast<char>(byte);
      i += 2;
    } else {
      out += text[i];
    }
  }
  return out;
}

HttpReply not_found(std::string_view path) {
  ApiError error = invalid_field(
      "", "no endpoint `" + std::string(path.substr(0, kMaxShown)) + "`; see docs/http.md",
      "not_found");
  error.status = 404;
  return error_reply(error);
}

HttpReply method_not_allowed(std::string_view method, const Route& route) {
  const std::string allowed = route.has_body ? "POST" : "GET, HEAD";
  ApiError error = invalid_field("",
                                 "`" + std::string(method.substr(0, 20)) + "` is not allowed for " +
                                     route.label + "; use " + allowed,
                                 "method_not_allowed");
  error.status = 405;
  HttpReply reply = error_reply(error);
  reply.headers.emplace_back("Allow", allowed);
  return reply;
}

}  // namespace

std::variant<Route, HttpReply> find_route(std::string_view method, std::string_view path) {
  Route route;
  bool found = false;
  for (const Entry& entry : table()) {
    if (entry.path != path) continue;
    route = entry.route;
    found = true;
  }
  if (!found && path.size() > kModelPrefix.size() &&
      path.substr(0, kModelPrefix.size()) == kModelPrefix) {
    route = {Endpoint::kModel, "/v1/models/{id}", true, false,
             percent_decode(path.substr(kModelPrefix.size()))};
    found = true;
  }
  if (!found) return not_found(path);
  const bool allowed = route.has_body ? method == "POST" : method == "GET" || method == "HEAD";
  if (!allowed) return method_not_allowed(method, route);
  return route;
}

}  // namespace thaw::coalescer
