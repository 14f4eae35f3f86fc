#include "coalescer/openai/session_document.h"

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "coalescer/core/token_trie.h"
#include "coalescer/openai/json_fields.h"
#include "coalescer/openai/json_text.h"
#include "coalescer/openai/parse_messages.h"
#include "coalescer/openai/session_json.h"
#include "engine/base/call_limits.h"

namespace thaw::coalescer {
namespace {

using nlohmann::ordered_json;

constexpr const char* kFormat = "thaw-session";
constexpr std::int64_t kVersion = 1;
/// Bytes. Requests bound the same names in characters, of four bytes at most.
constexpr std::size_t kMaxText = std::size_t{4} * 1024;
/// A message of a request, with the arguments of its tool calls as objects.
constexpr std::size_t kMaxDocumentDepth = 2 * kMaxJsonDepth + 8;
constexpr std::array<std::pair<const char*, LineEnd>, 4> kEnds = {{{"message", LineEnd::kMessage},
                                                                   {"prompted", LineEnd::kPrompted},
                                                                   {"reply", LineEnd::kReply},
                                                                   {"inside", LineEnd::kInside}}};

ordered_json state_json(const SessionState& state, const SessionState& first) {
  const std::size_t common = &state == &first ? 0 : common_prefix(state.tokens, first.tokens);
  ordered_json out = {{"common_tokens", common}};
  out["tokens"] = std::vector<TokenId>(state.tokens.begin() + static_cast<std::ptrdiff_t>(common),
                                       state.tokens.end());
  out["messages"] = ordered_json::array();
  for (const std::string& message : state.messages)
    out["messages"].push_back(ordered_json::parse(message));
  out["tools"] = state.tools.empty() ? ordered_json() : ordered_json::parse(state.tools);
  out["template_kwargs"] =
      state.template_kwargs.empty() ? ordered_json() : ordered_json::parse(state.template_kwargs);
  out["marks"] = ordered_json::array();
  for (const SessionMark& mark : state.marks) {
    const auto* const end =
        std::ranges::find(kEnds, mark.end, &decltype(kEnds)::value_type::second);
    out["marks"].push_back(
        {{"tokens", mark.tokens}, {"messages", mark.messages}, {"end", end->first}});
  }
  return out;
}

/// The array `name`, which a state cannot be without.
std::optional<simdjson::dom::array> required_array(JsonFields& fields, std::string_view name) {
  const auto list = fields.array(name);
  if (!list && !fields.failed()) {
    const std::string full_name = fields.full_name(name);
    fields.fail(invalid_field(full_name, "`" + full_name + "` is missing"));
  }
  return list;
}

/// Marks in order, within the state, the last one of all of it.
void read_marks(JsonFields& fields, SessionState& state) {
  const auto list = required_array(fields, "marks");
  if (!list) return;
  const auto wrong = [&](const std::string& name, const std::string& message) {
    fields.fail(invalid_field(name, "`" + name + "` " + message));
  };
  for (const auto item : *list) {
    const std::string name = fields.full_name("marks[" + std::to_string(state.marks.size()) + "]");
    simdjson::dom::object object;
    if (item.get(object) != simdjson::SUCCESS) return wrong(name, "must be an object");
    JsonFields mark_fields(object, name + ".");
    SessionMark mark;
    std::string end;
    mark_fields.read("tokens", mark.tokens, 0, static_cast<std::int64_t>(state.tokens.size()));
    mark_fields.read("messages", mark.messages, 0,
                     static_cast<std::int64_t>(state.messages.size()));
    mark_fields.read("end", end);
    if (mark_fields.failed()) return fields.fail_with(mark_fields);
    const auto* const found = std::ranges::find(
        kEnds, end, [](const auto& entry) { return std::string_view(entry.first); });
    if (found == kEnds.end())
      return wrong(name + ".end", "must be message, prompted, reply or inside");
    mark.end = found->second;
    if (!state.marks.empty() &&
        (mark.tokens < state.marks.back().tokens || mark.messages < state.marks.back().messages))
      return wrong(name, "lies before the mark in front of it");
    if (mark.end != LineEnd::kInside && mark.messages == 0)
      return wrong(name, "is the end of a message where there is none");
    state.marks.push_back(mark);
  }
  if (state.marks.empty() || state.marks.back().tokens != state.tokens.size() ||
      state.marks.back().messages != state.messages.size())
    wrong(fields.full_name("marks"), "must end with one that has all tokens and messages");
}

ApiResult<SharedState> read_state(JsonFields& fields, const SharedState& first,
                                  const DocumentLimits& limits) {
  auto state = std::make_shared<SessionState>();
  std::uint32_t common = 0;
  fields.read("common_tokens", common, 0,
              first == nullptr ? 0 : static_cast<std::int64_t>(first->tokens.size()));
  const auto list = required_array(fields, "tokens");
  if (list && !fields.failed()) {
    auto tokens = token_list(*list, fields.full_name("tokens"), limits.vocab_size);
    if (auto* error = std::get_if<ApiError>(&tokens)) return std::move(*error);
    const auto& own = std::get<std::vector<TokenId>>(tokens);
    if (common > 0) state->tokens.assign(first->tokens.begin(), first->tokens.begin() + common);
    state->tokens.insert(state->tokens.end(), own.begin(), own.end());
    if (state->tokens.empty() || state->tokens.size() > limits.max_model_len) {
      return invalid_field(
          fields.full_name("tokens"),
          "`" + fields.full_name("tokens") + "` gives a line of " +
              std::to_string(state->tokens.size()) + " tokens; it must have from 1 to " +
              std::to_string(limits.max_model_len) + ", the context of this model");
    }
  }
  ChatPrompt chat;
  read_chat_prompt(fields, chat, /*may_be_empty=*/true);
  if (const auto& error = fields.error()) return *error;
  for (const ordered_json& message : chat.messages)
    state->messages.push_back(message.dump());
  if (!chat.tools.is_null()) state->tools = chat.tools.dump();
  if (const auto kwargs = fields.object("template_kwargs"); kwargs && !fields.failed())
    state->template_kwargs = to_ordered_json(kwargs->raw()).dump();
  read_marks(fields, *state);
  if (const auto& error = fields.error()) return *error;
  return SharedState(std::move(state));
}

void read_short(JsonFields& fields, std::string_view name, std::string& text,
                std::size_t most = kMaxText) {
  fields.read(name, text);
  if (text.size() > most) {
    fields.fail(invalid_field(fields.full_name(name), "`" + fields.full_name(name) + "` has " +
                                                          std::to_string(text.size()) +
                                                          " bytes; at most " +
                                                          std::to_string(most) + " are accepted"));
  }
}

void read_states(JsonFields& fields, std::vector<SharedState>& states,
                 const DocumentLimits& limits) {
  const auto list = fields.array("states");
  if (!fields.failed() && (!list || list->size() == 0 || list->size() > kMaxCheckpoints + 1)) {
    return fields.fail(invalid_field(
        "states", "`states` must be a list of 1 to " + std::to_string(kMaxCheckpoints + 1)));
  }
  if (fields.failed() || !list) return;
  for (const auto item : *list) {
    const std::string name = "states[" + std::to_string(states.size()) + "]";
    simdjson::dom::object object;
    if (item.get(object) != simdjson::SUCCESS)
      return fields.fail(invalid_field(name, "`" + name + "` must be an object"));
    JsonFields part(object, name + ".");
    auto state = read_state(part, states.empty() ? nullptr : states.front(), limits);
    if (auto* error = std::get_if<ApiError>(&state)) {
      // Messages are named from where they stand.
      if (!error->param.starts_with(name)) error->param.insert(0, name + ".");
      return fields.fail(std::move(*error));
    }
    states.push_back(std::move(std::get<SharedState>(state)));
  }
}

void read_checkpoints(JsonFields& fields, const std::vector<SharedState>& states,
                      StoredSession& session) {
  const auto list = fields.array("checkpoints");
  if (!list || fields.failed()) return;
  for (const auto item : *list) {
    const std::string name = "checkpoints[" + std::to_string(session.checkpoints.size()) + "]";
    simdjson::dom::object object;
    if (item.get(object) != simdjson::SUCCESS)
      return fields.fail(invalid_field(name, "`" + name + "` must be an object"));
    JsonFields part(object, name + ".");
    SessionCheckpoint checkpoint;
    std::size_t state = 0;
    read_short(part, "name", checkpoint.name);
    part.read("created_at", checkpoint.created, 0, kMaxInt64);
    part.read("state", state, 0, static_cast<std::int64_t>(states.size()) - 1);
    if (part.failed()) return fields.fail_with(part);
    const bool taken = std::ranges::find(session.checkpoints, checkpoint.name,
                                         &SessionCheckpoint::name) != session.checkpoints.end();
    if (checkpoint.name.empty() || taken || session.checkpoints.size() >= kMaxCheckpoints) {
      return fields.fail(
          invalid_field(name, "`" + name + "` must have a name of its own, and there may be " +
                                  std::to_string(kMaxCheckpoints)));
    }
    checkpoint.state = states[state];
    session.checkpoints.push_back(std::move(checkpoint));
  }
}

}  // namespace

std::string write_session_document(const SessionDocument& document) {
  const StoredSession& session = document.session;
  std::vector<const SessionState*> states{session.state.get()};
  ordered_json checkpoints = ordered_json::array();
  for (const SessionCheckpoint& checkpoint : session.checkpoints) {
    auto found = std::ranges::find(states, checkpoint.state.get());
    if (found == states.end()) found = states.insert(found, checkpoint.state.get());
    checkpoints.push_back({{"name", checkpoint.name},
                           {"created_at", checkpoint.created},
                           {"state", found - states.begin()}});
  }
  ordered_json out = {{"format", kFormat},
                      {"version", kVersion},
                      {"id", session.id},
                      {"tenant", session.tenant},
                      {"model", session.model},
                      {"system_fingerprint", document.system_fingerprint},
                      {"weights", session.weights},
                      {"vocab_size", session.vocab_size},
                      {"cache_salt", session.cache_salt},
                      {"label", session.label},
                      {"parent", session.parent},
                      {"fork_tokens", session.fork_tokens},
                      {"created_at", session.created},
                      {"number", session.number},
                      {"expires_at", document.expires_at},
                      {"turns", session.turns},
                      {"states", ordered_json::array()},
                      {"checkpoints", std::move(checkpoints)}};
  // A document without one gets the server's.
  if (session.ttl.count() > 0) out["ttl_seconds"] = session.ttl.count();
  for (const SessionState* state : states)
    out["states"].push_back(state_json(*state, *states.front()));
  return dump_json(out);
}

ApiResult<SessionDocument> read_session_document(std::string_view text, const LimitsOf& limits_of) {
  JsonBody json;
  if (auto error = json.parse(text, kMaxDocumentDepth)) return std::move(*error);
  JsonFields fields(json.root());
  SessionDocument document;
  StoredSession& session = document.session;
  std::string format;
  fields.read("format", format);
  const auto version = fields.integer("version", 1, kMaxInt32);
  if (!fields.failed() && (format != kFormat || version != kVersion)) {
    return invalid_field("format",
                         "this is no session of a format that is known: `format` must "
                         "be \"thaw-session\" and `version` 1");
  }
  read_short(fields, "model", session.model);
  // Files of earlier versions have none.
  if (fields.find("weights")) read_short(fields, "weights", session.weights);
  const auto vocab_size = fields.integer("vocab_size", 1, kMaxInt32);
  const DocumentLimits limits = limits_of(session.weights, session.model);
  if (!fields.failed() && vocab_size != limits.vocab_size) {
    return invalid_field("vocab_size", "`vocab_size` is " + std::to_string(vocab_size.value_or(0)) +
                                           "; the model served here has " +
                                           std::to_string(limits.vocab_size) +
                                           " tokens, so the session is another model's");
  }
  fields.read("id", session.id);
  if (!fields.failed() && !is_session_id(session.id))
    return invalid_field("id", "`id` must be 32 lower-case hex digits");
  session.vocab_size = limits.vocab_size;
  read_short(fields, "tenant", session.tenant);
  read_short(fields, "system_fingerprint", document.system_fingerprint);
  read_short(fields, "cache_salt", session.cache_salt, kMaxCallNameBytes);
  read_short(fields, "label", session.label);
  read_short(fields, "parent", session.parent);
  fields.read("fork_tokens", session.fork_tokens, 0, kMaxInt32);
  if (const auto ttl = fields.integer("ttl_seconds", 1, kMaxInt32))
    session.ttl = std::chrono::seconds(*ttl);
  fields.read("created_at", session.created, 0, kMaxInt64);
  fields.read("number", session.number, 0, kMaxInt32);
  fields.read("expires_at", document.expires_at, 0, kMaxInt64);
  fields.read("turns", session.turns, 0, kMaxInt64);
  std::vector<SharedState> states;
  read_states(fields, states, limits);
  if (!fields.failed()) read_checkpoints(fields, states, session);
  if (const auto& error = fields.error()) return *error;
  session.state = states.front();
  return document;
}

}  // namespace thaw::coalescer
