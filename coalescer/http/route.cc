#include "coalescer/http/route.h"

#include <array>
#include <optional>

#include "coalescer/openai/query.h"

namespace thaw::coalescer {
namespace {

constexpr bool kOpen = false;  // needs no key
constexpr bool kKey = true;
constexpr bool kSlashes = true;

constexpr auto kEndpoints = std::to_array<EndpointPath>({
    {"POST", "/v1/chat/completions", Endpoint::kChat},
    {"POST", "/v1/completions", Endpoint::kCompletions},
    {"POST", "/v1/messages", Endpoint::kMessages},
    {"POST", "/v1/messages/count_tokens", Endpoint::kCountTokens},
    {"POST", "/v1/responses", Endpoint::kResponses},
    {"POST", "/v1/responses/input_tokens", Endpoint::kInputTokens},
    {"GET", "/v1/responses/{id}", Endpoint::kResponse},
    {"DELETE", "/v1/responses/{id}", Endpoint::kResponseDelete},
    {"POST", "/v1/responses/{id}/cancel", Endpoint::kResponseCancel},
    {"GET", "/v1/responses/{id}/input_items", Endpoint::kResponseItems},
    {"POST", "/v1/forks", Endpoint::kForks},
    {"GET", "/v1/forks/recent", Endpoint::kForksRecent},
    {"GET", "/v1/models", Endpoint::kModels},
    {"GET", "/v1/models/{id}", Endpoint::kModel, kKey, kSlashes},
    {"POST", "/tokenize", Endpoint::kTokenize},
    {"POST", "/detokenize", Endpoint::kDetokenize},
    {"GET", "/v1/sessions", Endpoint::kSessions},
    {"POST", "/v1/sessions", Endpoint::kSessionCreate},
    {"POST", "/v1/sessions/import", Endpoint::kSessionImport},
    {"GET", "/v1/sessions/{id}", Endpoint::kSession},
    {"DELETE", "/v1/sessions/{id}", Endpoint::kSessionDelete},
    {"POST", "/v1/sessions/{id}/fork", Endpoint::kSessionFork},
    {"POST", "/v1/sessions/{id}/checkpoint", Endpoint::kSessionCheckpoint},
    {"POST", "/v1/sessions/{id}/rewind", Endpoint::kSessionRewind},
    {"POST", "/v1/sessions/{id}/export", Endpoint::kSessionExport},
    {"GET", "/v1/sessions/{id}/tree", Endpoint::kSessionTree},
    {"GET", "/admin/pool", Endpoint::kAdminPool},
    {"POST", "/admin/preload", Endpoint::kAdminPreload},
    {"GET", "/admin/snapshots", Endpoint::kAdminSnapshots},
    {"POST", "/admin/snapshots", Endpoint::kAdminRegister},
    {"DELETE", "/admin/snapshots/{name}", Endpoint::kAdminUnregister, kKey, kSlashes},
    {"GET", "/health", Endpoint::kHealth, kOpen},
    {"GET", "/version", Endpoint::kVersion, kOpen},
    {"GET", "/metrics", Endpoint::kMetrics, kOpen},
    {"GET", "/openapi.json", Endpoint::kOpenApi, kOpen},
});

/// Bytes of a client's path that an error repeats.
constexpr std::size_t kMaxShown = 100;

/// What stands for the pattern's `{...}`, "" where it has none; nullopt where the path is another.
std::optional<std::string_view> match(const EndpointPath& entry, std::string_view path) {
  const std::string_view pattern = entry.path;
  const std::size_t open = pattern.find('{');
  if (open == std::string_view::npos)
    return path == pattern ? std::optional<std::string_view>("") : std::nullopt;
  const std::string_view before = pattern.substr(0, open);
  const std::string_view after = pattern.substr(pattern.find('}') + 1);
  if (path.size() <= before.size() + after.size() || !path.starts_with(before) ||
      !path.ends_with(after))
    return std::nullopt;
  path.remove_prefix(before.size());
  path.remove_suffix(after.size());
  if (!entry.takes_slashes && path.find('/') != std::string_view::npos) return std::nullopt;
  return path;
}

HttpReply not_found(std::string_view path) {
  ApiError error = invalid_field(
      "", "no endpoint `" + std::string(path.substr(0, kMaxShown)) + "`; see docs/http.md",
      "not_found");
  error.status = 404;
  return error_reply(error);
}

HttpReply method_not_allowed(std::string_view method, const char* label,
                             const std::string& allowed) {
  ApiError error = invalid_field("",
                                 "`" + std::string(method.substr(0, 20)) + "` is not allowed for " +
                                     label + "; use " + allowed,
                                 "method_not_allowed");
  error.status = 405;
  HttpReply reply = error_reply(error);
  reply.headers.emplace_back("Allow", allowed);
  return reply;
}

}  // namespace

std::span<const EndpointPath> endpoints() {
  return kEndpoints;
}

std::variant<Route, HttpReply> find_route(std::string_view method, std::string_view path) {
  const char* label = nullptr;
  std::string allowed;
  for (const EndpointPath& entry : kEndpoints) {
    const auto parameter = match(entry, path);
    if (!parameter) continue;
    if (label != nullptr && std::string_view(label) != entry.path) continue;
    label = entry.path;
    const bool is_get = std::string_view(entry.method) == "GET";
    if (method == entry.method || (is_get && method == "HEAD"))
      return Route{entry.endpoint, entry.path, entry.needs_key, percent_decode(*parameter)};
    allowed += (allowed.empty() ? "" : ", ") + std::string(entry.method);
    if (is_get) allowed += ", HEAD";
  }
  if (label == nullptr) return not_found(path);
  return method_not_allowed(method, label, allowed);
}

}  // namespace thaw::coalescer
