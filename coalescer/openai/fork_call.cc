#include "coalescer/openai/fork_call.h"

#include <string>
#include <string_view>
#include <unordered_set>
#include <utility>

#include "coalescer/openai/chunk_writer.h"
#include "coalescer/openai/json_fields.h"
#include "coalescer/openai/json_text.h"
#include "coalescer/openai/shapes.h"

namespace thaw::coalescer {
namespace {

using nlohmann::ordered_json;

std::string branch_name(std::size_t index) {
  return "forks[" + std::to_string(index) + "]";
}

/// Where the trunk's tokens come from, and the fields of it that every branch repeats.
struct Trunk {
  const char* kind = "";  // the field that names it
  ordered_json fields;
};

std::optional<ApiError> read_trunk(JsonFields& fields, ForksCall& call, Trunk& trunk) {
  auto given = fields.object("trunk");
  if (!given) return fields.error();
  // There is one of them.
  for (const char* name : {"messages", "prompt", "session_id", "response_id"})
    if (given->find(name)) trunk.kind = name;
  StoredTrunk& stored = call.stored;
  given->read("session_id", stored.session_id);
  given->read("response_id", stored.response_id);
  given->read("choice", stored.choice);
  if (const auto token = given->integer("token")) stored.token = static_cast<std::uint32_t>(*token);
  if (given->failed()) return given->error();
  if (stored.token && stored.response_id.empty()) {
    return invalid_field("trunk.token",
                         "`trunk.token` goes with `response_id`; a session is cut "
                         "where it is forked (POST /v1/sessions/{id}/fork)");
  }
  trunk.fields = to_ordered_json(given->raw());
  call.kind = std::string_view(trunk.kind) == "prompt" ? ApiKind::kCompletions : ApiKind::kChat;
  return std::nullopt;
}

/// The branch's own fields, and those of the whole call that it has none of.
ordered_json merge(simdjson::dom::object branch, const ordered_json& defaults) {
  auto merged = ordered_json::object();
  std::unordered_set<std::string_view> own;
  for (const auto field : branch) {
    if (field.value.is_null()) continue;
    own.insert(field.key);
    if (field.key != "label") append_member(merged, field.key, to_ordered_json(field.value));
  }
  for (const auto& [name, value] : defaults.items())
    if (!own.contains(name)) append_member(merged, name, value);
  return merged;
}

/// What the branch's own prompt is behind the trunk's.
std::optional<ApiError> join_prompts(const Trunk& trunk, ordered_json& branch,
                                     const std::string& name) {
  const std::string_view kind = trunk.kind;
  if (kind == "prompt") {
    ordered_json joined = trunk.fields["prompt"];
    const auto own = branch.find("prompt");
    if (own == branch.end() || own->is_null()) {
      branch["prompt"] = std::move(joined);
      return std::nullopt;
    }
    const bool fits = joined.is_string() ? own->is_string() : own->is_array();
    if (!fits) {
      return invalid_field(name + ".prompt", "`" + name + ".prompt` must be " +
                                                 (joined.is_string() ? "a string" : "token ids") +
                                                 ", as the trunk's is");
    }
    if (joined.is_string()) {
      joined.get_ref<std::string&>() += own->get_ref<const std::string&>();
    } else {
      joined.insert(joined.end(), own->begin(), own->end());
    }
    *own = std::move(joined);
    return std::nullopt;
  }
  ordered_json messages = ordered_json::array();
  if (kind == "messages") messages = trunk.fields["messages"];
  if (const auto own = branch.find("messages"); own != branch.end() && !own->is_null()) {
    if (!own->is_array() || !messages.is_array())
      return invalid_field(name + ".messages", "`" + name + ".messages` must be a list");
    for (ordered_json& message : *own)
      messages.push_back(std::move(message));
  }
  branch["messages"] = std::move(messages);
  return std::nullopt;
}

}  // namespace

ApiResult<ForksCall> parse_forks(std::string_view body, const ServedModels& models,
                                 std::uint32_t max_choices) {
  JsonBody json;
  if (auto error = json.parse(body)) return std::move(*error);
  ShapeLimits limits;
  limits.max_choices = max_choices;
  if (auto error = check_shape(kForksShape, json.root(), limits)) return std::move(*error);
  JsonFields fields(json.root());
  ForksCall call;
  Trunk trunk;
  if (auto error = read_trunk(fields, call, trunk)) return std::move(*error);
  fields.read("stream", call.stream);
  const auto forks = fields.array("forks");
  if (const auto& error = fields.error()) return *error;
  if (!forks) return invalid_field("forks", "`forks` is missing");
  ordered_json defaults = to_ordered_json(json.root());
  defaults.erase("trunk");
  defaults.erase("forks");
  for (const char* name : {"tools", "chat_template_kwargs"})
    if (trunk.fields.contains(name)) defaults[name] = trunk.fields[name];
  const StoredTrunk& stored = call.stored;
  if (stored.is_given()) defaults["session_id"] = stored.session_id + stored.response_id;
  // What was cut inside a reply is gone on with, unless the branch wants it otherwise.
  if (!stored.response_id.empty() && !defaults.contains("append")) defaults["append"] = true;

  std::uint32_t num_choices = 0;
  for (const simdjson::dom::element item : *forks) {
    const std::string name = branch_name(call.branches.size());
    simdjson::dom::object object;
    if (item.get(object) != simdjson::SUCCESS) continue;
    JsonFields own(object, name + ".");
    ForkBranch branch;
    own.read("label", branch.label);
    ordered_json merged = merge(object, defaults);
    if (auto error = join_prompts(trunk, merged, name)) return std::move(*error);
    auto parsed = parse_call(call.kind, dump_json(merged), models, max_choices);
    if (auto* error = std::get_if<ApiError>(&parsed)) {
      if (error->status == 400 && error->param != "model")
        error->param = error->param.empty() ? name : name + "." + error->param;
      return std::move(*error);
    }
    branch.call = std::move(std::get<ApiCall>(parsed));
    if (!stored.response_id.empty()) branch.call.session_id.clear();
    num_choices += branch.call.num_choices;
    call.include_usage = branch.call.include_usage;
    call.branches.push_back(std::move(branch));
  }
  if (num_choices > max_choices) {
    return invalid_field("forks", "`forks` asks for " + std::to_string(num_choices) +
                                      " replies in all; at most " + std::to_string(max_choices) +
                                      " are possible");
  }
  return call;
}

std::string branch_error_body(std::size_t branch, const std::string& label, const ApiError& error) {
  std::string out = R"({"branch":)";
  append_json_integer(out, static_cast<std::int64_t>(branch));
  if (!label.empty()) {
    out += R"(,"label":)";
    append_json_string(out, label);
  }
  return out + ',' + error_body(error).substr(1);
}

std::string forks_body(const CompletionLabel& label, const std::vector<std::string>& bodies,
                       const CompletionUsage& usage) {
  std::string out = R"({"id":)";
  append_json_string(out, label.id);
  out += R"(,"object":"forks","created":)";
  append_json_integer(out, label.created);
  out += R"(,"model":)";
  append_json_string(out, label.model);
  out += R"(,"data":[)";
  for (std::size_t i = 0; i < bodies.size(); ++i) {
    if (i > 0) out += ',';
    out += bodies[i];
  }
  out += "],";
  ChunkWriter::append_usage_object(out, usage);
  return out + '}';
}

std::string forks_usage_frame(const CompletionLabel& label, const CompletionUsage& usage) {
  std::string out = R"(data: {"id":)";
  append_json_string(out, label.id);
  out += R"(,"object":"forks.usage","created":)";
  append_json_integer(out, label.created);
  out += R"(,"model":)";
  append_json_string(out, label.model);
  out += R"(,"choices":[],)";
  ChunkWriter::append_usage_object(out, usage);
  return out + "}\n\n";
}

}  // namespace thaw::coalescer
