#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "coalescer/openai/api_error.h"
#include "coalescer/openai/call.h"
#include "coalescer/openai/text_codec.h"

namespace thaw::coalescer {

/// Where to cut a session; neither: at its end.
struct SessionCut {
  std::optional<std::uint32_t> tokens;
  std::optional<std::uint32_t> messages;

  bool is_whole() const { return !tokens && !messages; }
};

/// POST /v1/sessions: from `messages`, or from a chat completion by its id.
struct CreateSessionCall {
  std::string model;  ///< empty: the first one served
  std::string cache_salt;
  std::string label;
  std::chrono::seconds ttl{0};  ///< 0: the server's default
  ChatPrompt prompt;  ///< of `messages`
  bool prefill = true;  ///< compute the KV before the answer
  std::string response_id;  ///< empty: from messages
  std::uint32_t choice = 0;
};

/// POST /v1/sessions/{id}/fork.
struct ForkSessionCall {
  std::uint32_t count = 1;
  SessionCut cut;
  std::string checkpoint;  ///< start from this one; empty: from the session as it is
  std::vector<std::string> labels;
  std::chrono::seconds ttl{0};  ///< 0: the parent's
  bool include_running = false;  ///< with what the running turn has generated so far
};

/// POST /v1/sessions/{id}/checkpoint.
struct CheckpointCall {
  std::string name;  ///< empty: a number
};

/// POST /v1/sessions/{id}/rewind: to a checkpoint or to a cut.
struct RewindCall {
  std::string checkpoint;
  SessionCut cut;
};

/// POST /v1/sessions/{id}/export and /v1/sessions/import.
struct SessionFileCall {
  /// Name inside the server's session directory, no path; empty: by the body.
  std::string file;
  std::string document;  ///< of an import by the body, JSON text
  std::string label;
  std::chrono::seconds ttl{0};
};

/// Bodies; an empty one counts as `{}`. Errors name the field.
ApiResult<CreateSessionCall> parse_create_session(std::string_view body);
ApiResult<ForkSessionCall> parse_fork_session(std::string_view body, std::uint32_t max_children);
ApiResult<CheckpointCall> parse_checkpoint(std::string_view body);
ApiResult<RewindCall> parse_rewind(std::string_view body);
ApiResult<SessionFileCall> parse_session_file(std::string_view body, bool is_import);

/// What GET shows besides the facts: `?include=messages,token_ids`.
struct SessionView {
  bool messages = false;
  bool token_ids = false;
};
ApiResult<SessionView> parse_session_view(std::string_view query);

/// DELETE /v1/sessions/{id}?recursive=true
ApiResult<bool> parse_recursive(std::string_view query);

/// GET /v1/sessions?limit=&after=
struct SessionPage {
  std::uint32_t limit = 100;
  std::string after;  ///< the last session of the page before; empty: from the first
};
ApiResult<SessionPage> parse_session_page(std::string_view query);

}  // namespace thaw::coalescer
