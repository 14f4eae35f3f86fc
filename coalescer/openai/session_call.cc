#include "coalescer/openai/session_call.h"

#include <algorithm>
#include <array>
#include <utility>

#include "coalescer/openai/json_fields.h"
#include "coalescer/openai/parse_messages.h"
#include "coalescer/openai/query.h"
#include "coalescer/openai/shapes.h"

namespace thaw::coalescer {
namespace {

constexpr std::size_t kMaxFileName = 128;

/// An empty body counts as `{}`.
std::optional<ApiError> parse(JsonBody& json, std::string_view body, const Shape& shape,
                              const ShapeLimits& limits = {}) {
  if (auto error = json.parse(body.empty() ? std::string_view("{}") : body)) return error;
  return check_shape(shape, json.root(), limits);
}

void read_ttl(JsonFields& fields, std::chrono::seconds& ttl) {
  if (const auto seconds = fields.integer("ttl_seconds")) ttl = std::chrono::seconds(*seconds);
}

void read_cut(JsonFields& fields, SessionCut& cut) {
  if (const auto tokens = fields.integer("tokens"))
    cut.tokens = static_cast<std::uint32_t>(*tokens);
  if (const auto messages = fields.integer("messages"))
    cut.messages = static_cast<std::uint32_t>(*messages);
}

/// As the pattern of `file` says it.
bool is_file_name(std::string_view name) {
  const auto fits = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '_' || c == '.';
  };
  return !name.empty() && name.size() <= kMaxFileName && name.front() != '.' &&
         std::ranges::all_of(name, fits);
}

template <typename Call>
ApiResult<Call> result_of(const JsonFields& fields, Call call) {
  if (const auto& error = fields.error()) return *error;
  return call;
}

}  // namespace

ApiResult<CreateSessionCall> parse_create_session(std::string_view body) {
  JsonBody json;
  if (auto error = parse(json, body, kSessionCreateShape)) return std::move(*error);
  JsonFields fields(json.root());
  CreateSessionCall call;
  fields.read("model", call.model);
  fields.read("cache_salt", call.cache_salt);
  fields.read("label", call.label);
  read_ttl(fields, call.ttl);
  fields.read("prefill", call.prefill);
  fields.read("response_id", call.response_id);
  fields.read("choice", call.choice);
  if (!fields.failed() && call.response_id.empty()) {
    read_chat_prompt(fields, call.prompt);
    call.prompt.add_generation_prompt = false;
  }
  return result_of(fields, std::move(call));
}

ApiResult<ForkSessionCall> parse_fork_session(std::string_view body, std::uint32_t max_children) {
  JsonBody json;
  ShapeLimits limits;
  limits.max_choices = max_children;
  if (auto error = parse(json, body, kSessionForkShape, limits)) return std::move(*error);
  JsonFields fields(json.root());
  ForkSessionCall call;
  fields.read("n", call.count);
  if (auto cut = fields.object("cut")) read_cut(*cut, call.cut);
  fields.read("checkpoint", call.checkpoint);
  fields.read("include_running", call.include_running);
  if (call.include_running && !call.checkpoint.empty()) {
    fields.fail(invalid_field("include_running",
                              "`include_running` and `checkpoint` are both given; a fork starts "
                              "from one of them"));
  }
  read_ttl(fields, call.ttl);
  if (const auto labels = fields.array("labels")) {
    for (const auto label : *labels) {
      std::string_view text;
      if (label.get(text) == simdjson::SUCCESS) call.labels.emplace_back(text);
    }
    if (call.labels.size() > call.count) {
      fields.fail(invalid_field("labels", "`labels` has " + std::to_string(call.labels.size()) +
                                              " entries for " + std::to_string(call.count) +
                                              " children; at most one each"));
    }
  }
  return result_of(fields, std::move(call));
}

ApiResult<CheckpointCall> parse_checkpoint(std::string_view body) {
  JsonBody json;
  if (auto error = parse(json, body, kSessionCheckpointShape)) return std::move(*error);
  JsonFields fields(json.root());
  CheckpointCall call;
  fields.read("name", call.name);
  return result_of(fields, std::move(call));
}

ApiResult<RewindCall> parse_rewind(std::string_view body) {
  JsonBody json;
  if (auto error = parse(json, body, kSessionRewindShape)) return std::move(*error);
  JsonFields fields(json.root());
  RewindCall call;
  fields.read("checkpoint", call.checkpoint);
  read_cut(fields, call.cut);
  return result_of(fields, std::move(call));
}

ApiResult<SessionFileCall> parse_session_file(std::string_view body, bool is_import) {
  JsonBody json;
  if (auto error = parse(json, body, is_import ? kSessionImportShape : kSessionExportShape))
    return std::move(*error);
  JsonFields fields(json.root());
  SessionFileCall call;
  fields.read("file", call.file);
  if (!fields.failed() && !call.file.empty() && !is_file_name(call.file)) {
    fields.fail(invalid_field("file", "`file` is `" + call.file.substr(0, kMaxFileName) +
                                          "`; it must be a name of 1 to " +
                                          std::to_string(kMaxFileName) +
                                          " letters, digits, `-`, `_` and `.`, not a path"));
  }
  if (is_import) {
    if (const auto document = fields.object("document"))
      call.document = simdjson::minify(document->raw());
    fields.read("label", call.label);
    read_ttl(fields, call.ttl);
  }
  return result_of(fields, std::move(call));
}

ApiResult<SessionView> parse_session_view(std::string_view query) {
  std::array<std::optional<std::string>, 1> values;
  if (auto error = read_query(kSessionViewQuery, OtherParameters::kRefused, query, values))
    return std::move(*error);
  SessionView view;
  const std::string include = values[0].value_or("");
  view.messages = include.find("messages") != std::string::npos;
  view.token_ids = include.find("token_ids") != std::string::npos;
  return view;
}

ApiResult<bool> parse_recursive(std::string_view query) {
  std::array<std::optional<std::string>, 1> values;
  if (auto error = read_query(kSessionDeleteQuery, OtherParameters::kRefused, query, values))
    return std::move(*error);
  return values[0] == "true";
}

ApiResult<SessionPage> parse_session_page(std::string_view query) {
  std::array<std::optional<std::string>, 2> values;
  if (auto error = read_query(kSessionPageQuery, OtherParameters::kRefused, query, values))
    return std::move(*error);
  SessionPage page;
  page.limit = static_cast<std::uint32_t>(whole_or(values[0], page.limit));
  page.after = values[1].value_or("");
  return page;
}

}  // namespace thaw::coalescer
