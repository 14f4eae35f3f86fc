#pragma once

#include <cstdint>
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
  kForks,
  kForksRecent,
  kResponses,
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

struct Route {
  Endpoint endpoint = Endpoint::kHealth;
  const char* label = "";  ///< in metrics: the path, or its pattern
  bool needs_key = true;
  bool has_body = false;  ///< a POST
  std::string model;  ///< of kModel and kAdminUnregister, percent-decoded
  std::string session;  ///< of kSession and what follows it; of kResponse and its likes
};

/// `%20` and the like become what they stand for.
std::string percent_decode(std::string_view text);

/// Finds the endpoint; otherwise the 404, or the 405 with its Allow header.
std::variant<Route, HttpReply> find_route(std::string_view method, std::string_view path);

}  // namespace thaw::coalescer
