#include "coalescer/http/origins.h"

#include <algorithm>
#include <array>
#include <cctype>

namespace thaw::coalescer {
namespace {

/// The host of "scheme://host[:port]", for http and https; empty for others.
std::string_view web_host(std::string_view origin) {
  for (const std::string_view scheme : {"http://", "https://"}) {
    if (!origin.starts_with(scheme)) continue;
    std::string_view host = origin.substr(scheme.size());
    if (host.starts_with('[')) return host.substr(0, host.find(']') + 1);
    return host.substr(0, host.find(':'));
  }
  return {};
}

bool is_of_this_machine(std::string_view origin) {
  const std::string_view host = web_host(origin);
  if (host == "localhost" || host == "127.0.0.1" || host == "[::1]") return true;
  // Of programs that are browsers in a frame of their own; no page on the web has such an origin.
  constexpr std::array<std::string_view, 5> kPrograms = {"app://", "file://", "tauri://",
                                                         "vscode-file://", "vscode-webview://"};
  return std::ranges::any_of(kPrograms,
                             [&](std::string_view program) { return origin.starts_with(program); });
}

/// Names of headers, and what stands between them.
bool is_header_list(std::string_view text) {
  return std::ranges::all_of(text, [](unsigned char c) {
    return std::isalnum(c) != 0 || c == '-' || c == '_' || c == ',' || c == ' ';
  });
}

}  // namespace

bool Origins::allows(std::string_view origin) const {
  return is_of_this_machine(origin) || std::ranges::any_of(allowed_, [&](const std::string& one) {
           return one == "*" || one == origin;
         });
}

HttpReply Origins::preflight(const RequestHead& head) {
  HttpReply reply;
  reply.content_type = "text/plain";
  reply.headers.emplace_back("Access-Control-Allow-Methods", "GET, POST, PUT, DELETE");
  // Clients add headers of their own, which change with their versions.
  if (!head.preflight_headers.empty() && is_header_list(head.preflight_headers))
    reply.headers.emplace_back("Access-Control-Allow-Headers", head.preflight_headers);
  reply.headers.emplace_back("Access-Control-Max-Age", "600");
  return reply;
}

}  // namespace thaw::coalescer
