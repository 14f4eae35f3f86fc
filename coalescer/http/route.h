#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <variant>

#include "coalescer/http/http_reply.h"

namespace thaw::coalescer {

enum class Endpoint : std::uint8_t {
  kChat,
  kCompletions,
  kMessages,
  kCountTokens,
  kTokenize,
  kDetokenize,
  kModels,
  kModel,
  kHealth,
  kVersion,
  kMetrics,
  kOpenApi,
  kForks,
  kForksRecent,
  kResponses,
  kInputTokens,
  kResponse,
  kResponseDelete,
  kResponseCancel,
  kResponseItems,
  kAdminPool,
  kAdminSnapshots,
  kAdminRegister,
  kAdminUnregister,
  kAdminPreload,
  kSessions,
  kSessionCreate,
  kSessionImport,
  kSession,
  kSessionDelete,
  kSessionFork,
  kSessionCheckpoint,
  kSessionRewind,
  kSessionExport,
  kSessionTree,
};

/// One method of one path. `HEAD` goes wherever `GET` does.
struct EndpointPath {
  const char* method;
  /// With one `{...}` at most, which stands for a part of the path that is not empty.
  const char* path;
  Endpoint endpoint;
  bool needs_key = true;
  bool takes_slashes = false;  ///< what stands for `{...}` may have some: names of models do
};

/// All there are. Where two paths fit, the first one counts: put what is spelt out first.
std::span<const EndpointPath> endpoints();

struct Route {
  Endpoint endpoint = Endpoint::kHealth;
  const char* label = "";  ///< in metrics: the path, or its pattern
  bool needs_key = true;
  std::string parameter;  ///< what stands for `{...}`, percent-decoded
};

/// Finds the endpoint; otherwise the 404, or the 405 with its Allow header.
std::variant<Route, HttpReply> find_route(std::string_view method, std::string_view path);

}  // namespace thaw::coalescer
