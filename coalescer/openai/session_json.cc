#include "coalescer/openai/session_json.h"

#include <algorithm>
#include <utility>

#include <nlohmann/json.hpp>

#include "coalescer/core/token_trie.h"
#include "coalescer/openai/json_text.h"

namespace thaw::coalescer {
namespace {

using nlohmann::ordered_json;

ordered_json text_or_null(const std::string& text) {
  return text.empty() ? ordered_json(nullptr) : ordered_json(text);
}

ordered_json checkpoint_json(const SessionCheckpoint& checkpoint) {
  return {{"name", checkpoint.name},
          {"tokens", checkpoint.state->tokens.size()},
          {"messages", checkpoint.state->messages.size()},
          {"created_at", checkpoint.created}};
}

/// What of the session's KV is kept for it.
ordered_json kv_json(const SessionPin* pin) {
  const bool kept = pin != nullptr && pin->tokens > 0;
  return {{"kept", kept},
          {"tokens", kept ? pin->tokens : 0},
          {"bytes", kept ? pin->bytes : 0},
          {"given_up", pin != nullptr && pin->given_up}};
}

ordered_json saved_json(const SavedSession& saved) {
  return {{"kv_tokens", saved.kv_tokens},
          {"kv_bytes", saved.kv_bytes},
          {"kv_error", text_or_null(saved.kv_error)}};
}

ordered_json session_json(const SessionsView& sessions, const StoredSession& session) {
  const SessionStore& store = sessions.store;
  ordered_json checkpoints = ordered_json::array();
  for (const SessionCheckpoint& checkpoint : session.checkpoints)
    checkpoints.push_back(checkpoint_json(checkpoint));
  return {{"id", session.id},
          {"object", "session"},
          {"created_at", session.created},
          {"expires_at", store.expires_at(session)},
          {"ttl_seconds", session.ttl.count()},
          {"model", session.model},
          {"label", text_or_null(session.label)},
          {"cache_salt", text_or_null(session.cache_salt)},
          {"parent", text_or_null(session.parent)},
          {"fork_tokens",
           session.parent.empty() ? ordered_json(nullptr) : ordered_json(session.fork_tokens)},
          {"children", session.children},
          {"tokens", session.state->tokens.size()},
          {"num_messages", session.state->messages.size()},
          {"turns", session.turns},
          {"running", session.busy},
          {"kv", kv_json(sessions.pins.find(session.id))},
          {"checkpoints", std::move(checkpoints)}};
}

/// Trees are as deep as sessions were forked from forks; a loop, since that may be deep.
ordered_json tree_json(const SessionsView& sessions, const StoredSession& root,
                       const StoredSession& asked) {
  const SessionStore& store = sessions.store;
  std::vector<const StoredSession*> order{&root};  // parents before children
  for (std::size_t i = 0; i < order.size(); ++i) {
    for (const std::string& id : order[i]->children)
      if (const StoredSession* child = store.by_id(id)) order.push_back(child);
  }
  ordered_json nodes = ordered_json::array();
  for (const StoredSession* node : order) {
    const StoredSession* parent = store.parent_of(*node);
    ordered_json checkpoints = ordered_json::array();
    for (const SessionCheckpoint& checkpoint : node->checkpoints)
      checkpoints.push_back(checkpoint_json(checkpoint));
    const std::size_t shared =
        parent == nullptr ? 0 : common_prefix(node->state->tokens, parent->state->tokens);
    nodes.push_back({{"id", node->id},
                     {"label", text_or_null(node->label)},
                     {"parent", text_or_null(parent == nullptr ? "" : parent->id)},
                     {"fork_tokens",
                      parent == nullptr ? ordered_json(nullptr) : ordered_json(node->fork_tokens)},
                     {"tokens", node->state->tokens.size()},
                     {"num_messages", node->state->messages.size()},
                     {"shared_tokens", shared},
                     {"shared_blocks", shared / kBlockSize},
                     {"turns", node->turns},
                     {"running", node->busy},
                     {"kv", kv_json(sessions.pins.find(node->id))},
                     {"current", node == &asked},
                     {"checkpoints", std::move(checkpoints)},
                     {"children", node->children}});
  }
  return nodes;
}

}  // namespace

std::string session_body(const SessionsView& sessions, const StoredSession& session,
                         const SessionView& view, const std::optional<CompletionUsage>& usage,
                         const std::string& kv_error) {
  ordered_json out = session_json(sessions, session);
  if (usage) {
    out["usage"] = {{"prompt_tokens", usage->prompt_tokens},
                    {"prompt_tokens_details", {{"cached_tokens", usage->cached_tokens}}}};
  }
  if (!kv_error.empty()) out["kv"]["error"] = kv_error;
  if (view.messages) {
    out["messages"] = ordered_json::array();
    for (const std::string& message : session.state->messages)
      out["messages"].push_back(ordered_json::parse(message));
    if (!session.state->tools.empty()) out["tools"] = ordered_json::parse(session.state->tools);
  }
  if (view.token_ids) out["token_ids"] = session.state->tokens;
  return dump_json(out);
}

std::string sessions_body(const SessionsView& sessions, const std::vector<StoredSession*>& listed,
                          bool has_more) {
  ordered_json out = {{"object", "list"}, {"data", ordered_json::array()}, {"has_more", has_more}};
  for (const StoredSession* session : listed)
    out["data"].push_back(session_json(sessions, *session));
  return dump_json(out);
}

std::string checkpoint_body(const StoredSession& session, const SessionCheckpoint& checkpoint,
                            const SavedSession* saved) {
  ordered_json out = {{"object", "session.checkpoint"}, {"session", session.id}};
  out.update(checkpoint_json(checkpoint));
  out["saved"] = saved == nullptr ? ordered_json(nullptr) : saved_json(*saved);
  return dump_json(out);
}

std::string export_file_body(const std::string& id, const std::string& file,
                             const SavedSession& saved) {
  ordered_json out = {{"object", "session.export"}, {"id", id}, {"file", file}};
  out.update(saved_json(saved));
  return dump_json(out);
}

std::string export_body(const std::string& id, const std::string& document) {
  return R"({"object":"session.export","id":")" + id + R"(","document":)" + document + "}";
}

std::string deleted_body(const std::string& id, std::size_t count) {
  return dump_json(
      {{"id", id}, {"object", "session.deleted"}, {"deleted", true}, {"count", count}});
}

std::string tree_body(const SessionsView& sessions, const StoredSession& session) {
  const StoredSession& root = sessions.store.root_of(session);
  return dump_json({{"object", "session.tree"},
                    {"root", root.id},
                    {"current", session.id},
                    {"nodes", tree_json(sessions, root, session)}});
}

bool is_session_id(std::string_view text) {
  return text.size() == 32 && text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

}  // namespace thaw::coalescer
