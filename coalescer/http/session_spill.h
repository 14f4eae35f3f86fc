#pragma once

#include <cstdint>
#include <string>

#include <boost/asio/awaitable.hpp>

#include "coalescer/http/server_context.h"
#include "coalescer/openai/session_document.h"
#include "coalescer/openai/session_json.h"

namespace thaw::coalescer {

/// Sessions to and from the session directory. Coroutines on the I/O thread; the disk is waited for
/// elsewhere. REQUIRES: context->sessions.files().

/// Writes the session, with its KV where that is alive. The KV's own failure is told in the result;
/// errors are the document's.
boost::asio::awaitable<Result<SavedSession>> save_session(ServerContext* context, std::string id);

/// The same under a name below exports/, which must be free.
boost::asio::awaitable<Result<SavedSession>> export_session(ServerContext* context, std::string id,
                                                            std::string name);

/// Brings KV that lies in a file back into memory; does nothing where there is none.
boost::asio::awaitable<void> load_spilled(ServerContext* context, std::string id);

/// Loads KV from `path` for the session. Empty where it went well, else why not.
boost::asio::awaitable<std::string> load_kv(ServerContext* context, std::string id,
                                            std::string path);

/// Writes all sessions, as far as they get within a deadline. At the end of the server.
boost::asio::awaitable<void> save_all_sessions(ServerContext* context);

/// Takes up what a server before this one has written. Before the server runs; blocks on the disk.
void load_all_sessions(ServerContext* context);

/// The session written down, for an export by the body.
std::string document_text(ServerContext* context, const StoredSession& session);

/// Of what is served now.
LimitsOf document_limits(const ServerContext* context);

/// Binds a session that was written down, here or elsewhere, to the model that is served here.
void settle_model(const ServerContext* context, StoredSession& session);

}  // namespace thaw::coalescer
