#include "coalescer/openai/session_call.h"

#include <algorithm>
#include <utility>

#include "coalescer/openai/json_fields.h"
#include "coalescer/openai/parse_messages.h"
#include "coalescer/openai/query.h"

namespace thaw::coalescer {
namespace {

constexpr std::size_t kMaxLabelBytes = 200;
constexpr std::uint32_t kMaxPage = 1000;

std::optional<ApiError> parse(JsonBody& json, std::string_view body) {
  return json.parse(body.empty() ? std::string_view("{}") : body);
}

void check_length(JsonFields& fields, const std::string& name, const std::string& text) {
  if (text.size() <= kMaxLabelBytes) return;
  fields.fail(invalid_field(name, "`" + name + "` has " + std::to_string(text.size()) +
                                      " bytes; at most " + std::to_string(kMaxLabelBytes) +
                                      " are accepted"));
}

void read_label(JsonFields& fields, std::string& label) {
  fields.read("label", label);
  check_length(fields, "label", label);
}

void read_ttl(JsonFields& fields, std::chrono::seconds& ttl) {
  if (const auto seconds = fields.integer("ttl_seconds", 1, kMaxInt32))
    ttl = std::chrono::seconds(*seconds);
}

void read_cut(JsonFields& fields, SessionCut& cut) {
  if (const auto tokens = fields.integer("tokens", 1, kMaxInt32))
    cut.tokens = static_cast<std::uint32_t>(*tokens);
  if (const auto messages = fields.integer("messages", 1, kMaxInt32))
    cut.messages = static_cast<std::uint32_t>(*messages);
  if (cut.tokens && cut.messages) {
    fields.fail(
        invalid_field(fields.full_name("tokens"), "`" + fields.full_name("tokens") + "` and `" +
                                                      fields.full_name("messages") +
                                                      "` are both given; a cut is at one of them"));
  }
}

template <typename Call>
ApiResult<Call> result_of(const JsonFields& fields, Call call) {
  if (const auto& error = fields.error()) return *error;
  return call;
}

ApiError unknown_parameter(std::string_view name, const std::string& known) {
  const std::string shown(name.substr(0, 40));
  return invalid_field(shown, "the query has a parameter `" + shown + "`; known is " + known);
}

}  // namespace

ApiResult<CreateSessionCall> parse_create_session(std::string_view body) {
  JsonBody json;
  if (auto error = parse(json, body)) return std::move(*error);
  JsonFields fields(json.root());
  CreateSessionCall call;
  fields.read("model", call.model);
  fields.read("cache_salt", call.cache_salt);
  if (call.cache_salt.size() > kMaxSaltBytes) {
    fields.fail(invalid_field(
        "cache_salt", "`cache_salt` has " + std::to_string(call.cache_salt.size()) +
                          " bytes; at most " + std::to_string(kMaxSaltBytes) + " are accepted"));
  }
  read_label(fields, call.label);
  read_ttl(fields, call.ttl);
  fields.read("prefill", call.prefill);
  fields.read("response_id", call.response_id);
  fields.read("choice", call.choice, 0, kMaxInt32);
  const bool from_messages = fields.find("messages").has_value();
  if (!fields.failed() && from_messages == !call.response_id.empty()) {
    fields.fail(invalid_field(
        "messages", from_messages ? "`messages` and `response_id` are both given; a session starts "
                                    "from one of them"
                                  : "`messages` is missing; give a list of messages, or "
                                    "`response_id`, the id of a chat completion"));
  }
  if (!fields.failed() && from_messages) {
    read_chat_prompt(fields, call.prompt);
    call.prompt.add_generation_prompt = false;
  }
  return result_of(fields, std::move(call));
}

ApiResult<ForkSessionCall> parse_fork_session(std::string_view body, std::uint32_t max_children) {
  JsonBody json;
  if (auto error = parse(json, body)) return std::move(*error);
  JsonFields fields(json.root());
  ForkSessionCall call;
  fields.read("n", call.count, 1, max_children);
  if (auto cut = fields.object("cut")) {
    read_cut(*cut, call.cut);
    if (!cut->failed() && call.cut.is_whole()) {
      cut->fail(invalid_field("cut", "`cut` is empty; it must have `tokens` or `messages`"));
    }
    fields.fail_with(*cut);
  }
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
      const std::string name = "labels[" + std::to_string(call.labels.size()) + "]";
      std::string_view text;
      if (label.get(text) != simdjson::SUCCESS) {
        fields.fail(invalid_field(
            name, "`" + name + "` is " + json_type_name(label) + "; it must be a string"));
        break;
      }
      call.labels.emplace_back(text);
      check_length(fields, name, call.labels.back());
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
  if (auto error = parse(json, body)) return std::move(*error);
  JsonFields fields(json.root());
  CheckpointCall call;
  fields.read("name", call.name);
  check_length(fields, "name", call.name);
  return result_of(fields, std::move(call));
}

ApiResult<RewindCall> parse_rewind(std::string_view body) {
  JsonBody json;
  if (auto error = parse(json, body)) return std::move(*error);
  JsonFields fields(json.root());
  RewindCall call;
  fields.read("checkpoint", call.checkpoint);
  read_cut(fields, call.cut);
  if (!fields.failed() && call.checkpoint.empty() == call.cut.is_whole()) {
    fields.fail(invalid_field("checkpoint",
                              call.checkpoint.empty()
                                  ? "nothing says where to; give `checkpoint`, `tokens` or "
                                    "`messages`"
                                  : "`checkpoint` and a number of tokens or messages are both "
                                    "given; a session is taken back to one point"));
  }
  return result_of(fields, std::move(call));
}

ApiResult<SessionFileCall> parse_session_file(std::string_view body, bool is_import) {
  JsonBody json;
  if (auto error = parse(json, body)) return std::move(*error);
  JsonFields fields(json.root());
  SessionFileCall call;
  fields.read("file", call.file);
  if (is_import) {
    if (const auto document = fields.object("document"))
      call.document = simdjson::minify(document->raw());
    if (!fields.failed() && call.file.empty() == call.document.empty()) {
      fields.fail(invalid_field("document",
                                "give either `document`, what an export answered, or `file`, a "
                                "name in the server's session directory"));
    }
    read_label(fields, call.label);
    read_ttl(fields, call.ttl);
  }
  return result_of(fields, std::move(call));
}

ApiResult<SessionView> parse_session_view(std::string_view query) {
  SessionView view;
  while (const auto parameter = take_parameter(query)) {
    if (parameter->name != "include") return unknown_parameter(parameter->name, "`include`");
    std::string_view value = parameter->value;
    while (!value.empty()) {
      const std::string_view item = value.substr(0, value.find(','));
      value.remove_prefix(std::min(value.size(), item.size() + 1));
      if (item == "messages") {
        view.messages = true;
      } else if (item == "token_ids") {
        view.token_ids = true;
      } else {
        return invalid_field("include", "`include` has `" + std::string(item.substr(0, 40)) +
                                            "`; it may have `messages` and `token_ids`, with a "
                                            "comma between them");
      }
    }
  }
  return view;
}

ApiResult<bool> parse_recursive(std::string_view query) {
  bool recursive = false;
  while (const auto parameter = take_parameter(query)) {
    if (parameter->name != "recursive") return unknown_parameter(parameter->name, "`recursive`");
    const auto given = true_or_false(*parameter);
    if (std::holds_alternative<ApiError>(given)) return given;
    recursive = std::get<bool>(given);
  }
  return recursive;
}

ApiResult<SessionPage> parse_session_page(std::string_view query) {
  SessionPage page;
  while (const auto parameter = take_parameter(query)) {
    if (parameter->name == "after") {
      page.after = parameter->value;
    } else if (parameter->name == "limit") {
      const auto limit = page_limit(*parameter, kMaxPage);
      if (const auto* error = std::get_if<ApiError>(&limit)) return *error;
      page.limit = std::get<std::uint32_t>(limit);
    } else {
      return unknown_parameter(parameter->name, "`limit` or `after`");
    }
  }
  return page;
}

}  // namespace thaw::coalescer
