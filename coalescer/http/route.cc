#include "coalescer/http/route.h"

#include <array>
#include <charconv>
#include <span>

namespace thaw::coalescer {
namespace {

struct Entry {
  std::string_view path;
  Route route;
};

const std::array<Entry, 15>& table() {
  static const std::array<Entry, 15> entries = {{
      {"/v1/chat/completions", {Endpoint::kChat, "/v1/chat/completions", true, true, "", ""}},
      {"/v1/completions", {Endpoint::kCompletions, "/v1/completions", true, true, "", ""}},
      {"/v1/messages", {Endpoint::kMessages, "/v1/messages", true, true, "", ""}},
      {"/v1/messages/count_tokens",
       {Endpoint::kCountTokens, "/v1/messages/count_tokens", true, true, "", ""}},
      {"/tokenize", {Endpoint::kTokenize, "/tokenize", true, true, "", ""}},
      {"/detokenize", {Endpoint::kDetokenize, "/detokenize", true, true, "", ""}},
      {"/v1/models", {Endpoint::kModels, "/v1/models", true, false, "", ""}},
      {"/health", {Endpoint::kHealth, "/health", false, false, "", ""}},
      {"/version", {Endpoint::kVersion, "/version", false, false, "", ""}},
      {"/metrics", {Endpoint::kMetrics, "/metrics", false, false, "", ""}},
      {"/v1/forks", {Endpoint::kForks, "/v1/forks", true, true, "", ""}},
      {"/v1/forks/recent", {Endpoint::kForksRecent, "/v1/forks/recent", true, false, "", ""}},
      {"/admin/pool", {Endpoint::kAdminPool, "/admin/pool", true, false, "", ""}},
      {"/admin/preload", {Endpoint::kAdminPreload, "/admin/preload", true, true, "", ""}},
      {"/admin/snapshots", {Endpoint::kAdminSnapshots, "/admin/snapshots", true, false, "", ""}},
  }};
  return entries;
}

/// Bytes of a client's path that an error repeats.
constexpr std::size_t kMaxShown = 100;
constexpr std::string_view kModelPrefix = "/v1/models/";
constexpr std::string_view kSessions = "/v1/sessions";
constexpr std::string_view kResponses = "/v1/responses";
constexpr std::string_view kSnapshotPrefix = "/admin/snapshots/";

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

/// One method of a path below a collection. `verb` follows the id; "" and no id is the collection.
struct SessionEntry {
  std::string_view verb;
  bool has_id;
  std::string_view method;
  Endpoint endpoint;
  const char* label;
};

constexpr std::array<SessionEntry, 10> kSessionTable = {{
    {"", false, "GET", Endpoint::kSessions, "/v1/sessions"},
    {"", false, "POST", Endpoint::kSessionCreate, "/v1/sessions"},
    {"import", false, "POST", Endpoint::kSessionImport, "/v1/sessions/import"},
    {"", true, "GET", Endpoint::kSession, "/v1/sessions/{id}"},
    {"", true, "DELETE", Endpoint::kSessionDelete, "/v1/sessions/{id}"},
    {"fork", true, "POST", Endpoint::kSessionFork, "/v1/sessions/{id}/fork"},
    {"checkpoint", true, "POST", Endpoint::kSessionCheckpoint, "/v1/sessions/{id}/checkpoint"},
    {"rewind", true, "POST", Endpoint::kSessionRewind, "/v1/sessions/{id}/rewind"},
    {"export", true, "POST", Endpoint::kSessionExport, "/v1/sessions/{id}/export"},
    {"tree", true, "GET", Endpoint::kSessionTree, "/v1/sessions/{id}/tree"},
}};

constexpr std::array<SessionEntry, 5> kResponseTable = {{
    {"", false, "POST", Endpoint::kResponses, "/v1/responses"},
    {"", true, "GET", Endpoint::kResponse, "/v1/responses/{id}"},
    {"", true, "DELETE", Endpoint::kResponseDelete, "/v1/responses/{id}"},
    {"cancel", true, "POST", Endpoint::kResponseCancel, "/v1/responses/{id}/cancel"},
    {"input_items", true, "GET", Endpoint::kResponseItems, "/v1/responses/{id}/input_items"},
}};

/// `rest`: what follows the collection in the path.
std::variant<Route, HttpReply> find_route_below(std::span<const SessionEntry> table,
                                                std::string_view method, std::string_view path,
                                                std::string_view rest) {
  if (rest == "/") return not_found(path);
  if (!rest.empty()) rest.remove_prefix(1);
  std::string_view id;
  std::string_view verb;
  if (rest == "import" && table.data() == kSessionTable.data()) {
    verb = rest;
  } else {
    id = rest.substr(0, rest.find('/'));
    if (id.size() < rest.size()) verb = rest.substr(id.size() + 1);
    if (!rest.empty() && (id.empty() || (verb.empty() && id.size() < rest.size())))
      return not_found(path);
  }
  std::string allowed;
  const char* label = "";
  for (const SessionEntry& entry : table) {
    if (entry.verb != verb || entry.has_id != !id.empty()) continue;
    if (entry.method == method || (entry.method == "GET" && method == "HEAD")) {
      return Route{entry.endpoint, entry.label, true, entry.method == "POST", "", std::string(id)};
    }
    label = entry.label;
    allowed += (allowed.empty() ? "" : ", ") + std::string(entry.method);
    if (entry.method == "GET") allowed += ", HEAD";
  }
  if (allowed.empty()) return not_found(path);
  return method_not_allowed(method, label, allowed);
}

}  // namespace

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

std::variant<Route, HttpReply> find_route(std::string_view method, std::string_view path) {
  const auto is_below = [&](std::string_view collection) {
    return path.starts_with(collection) &&
           (path.size() == collection.size() || path[collection.size()] == '/');
  };
  if (is_below(kSessions))
    return find_route_below(kSessionTable, method, path, path.substr(kSessions.size()));
  if (is_below(kResponses))
    return find_route_below(kResponseTable, method, path, path.substr(kResponses.size()));
  Route route;
  bool found = false;
  for (const Entry& entry : table()) {
    if (entry.path != path) continue;
    route = entry.route;
    found = true;
  }
  if (!found && path.size() > kModelPrefix.size() &&
      path.substr(0, kModelPrefix.size()) == kModelPrefix) {
    route = {Endpoint::kModel,
             "/v1/models/{id}",
             true,
             false,
             percent_decode(path.substr(kModelPrefix.size())),
             ""};
    found = true;
  }
  if (!found && path.size() > kSnapshotPrefix.size() &&
      path.substr(0, kSnapshotPrefix.size()) == kSnapshotPrefix) {
    route.endpoint = Endpoint::kAdminUnregister;
    route.label = "/admin/snapshots/{name}";
    route.model = percent_decode(path.substr(kSnapshotPrefix.size()));
    if (method == "DELETE") return route;
    return method_not_allowed(method, route.label, "DELETE");
  }
  if (!found) return not_found(path);
  if (route.endpoint == Endpoint::kAdminSnapshots && method == "POST")
    return Route{Endpoint::kAdminRegister, route.label, true, true, "", ""};
  const bool allowed = route.has_body ? method == "POST" : method == "GET" || method == "HEAD";
  if (!allowed) {
    const bool both = route.endpoint == Endpoint::kAdminSnapshots;
    return method_not_allowed(method, route.label,
                              both             ? "GET, HEAD, POST"
                              : route.has_body ? "POST"
                                               : "GET, HEAD");
  }
  return route;
}

}  // namespace thaw::coalescer
