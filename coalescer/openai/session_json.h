#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "coalescer/core/session_pins.h"
#include "coalescer/core/session_store.h"
#include "coalescer/openai/answer.h"
#include "coalescer/openai/session_call.h"

namespace thaw::coalescer {

/// What the bodies tell from.
struct SessionsView {
  const SessionStore& store;
  const SessionPins& pins;
};

/// One session as GET /v1/sessions/{id} shows it.
/// `usage`: what making it cost. `kv_error`: why KV that there was is not here; empty: it is.
std::string session_body(const SessionsView& sessions, const StoredSession& session,
                         const SessionView& view,
                         const std::optional<CompletionUsage>& usage = std::nullopt,
                         const std::string& kv_error = "");

/// `{"object": "list", "data": [...], "has_more"}`
std::string sessions_body(const SessionsView& sessions, const std::vector<StoredSession*>& listed,
                          bool has_more);

/// What of a session was written to a directory.
struct SavedSession {
  std::uint32_t kv_tokens = 0;
  std::uint64_t kv_bytes = 0;
  std::string kv_error;  ///< why there is no KV; empty: there is, or the line is too short for any
};

/// `{"object": "session.checkpoint", "session", "name", ...}`; `saved` null: nothing was written.
std::string checkpoint_body(const StoredSession& session, const SessionCheckpoint& checkpoint,
                            const SavedSession* saved);
/// `{"object": "session.export", "id", "file", "kv_tokens", ...}`
std::string export_file_body(const std::string& id, const std::string& file,
                             const SavedSession& saved);
/// `{"object": "session.export", "id", "document"}`; `document` is JSON text.
std::string export_body(const std::string& id, const std::string& document);

/// `{"id", "object": "session.deleted", "deleted": true, "count"}`
std::string deleted_body(const std::string& id, std::size_t count);

/// The whole tree that `session` is in, from its root: for each node its size and what it shares
/// with the node above.
std::string tree_body(const SessionsView& sessions, const StoredSession& session);

/// 32 hex digits?
bool is_session_id(std::string_view text);

}  // namespace thaw::coalescer
