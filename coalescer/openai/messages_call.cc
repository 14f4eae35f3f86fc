#include "coalescer/openai/messages_call.h"

#include <utility>

#include "coalescer/openai/messages_conversation.h"
#include "coalescer/openai/reasoning.h"

namespace thaw::coalescer {
namespace {

using nlohmann::ordered_json;
using simdjson::dom::element;

constexpr std::size_t kMaxStops = 64;
constexpr std::size_t kMaxStopBytes = 1024;

void read_stop_sequences(JsonFields& fields, ApiCall& call) {
  const auto list = fields.array("stop_sequences");
  if (!list || fields.failed()) return;
  for (const element value : *list) {
    std::string_view text;
    if (call.stop.size() >= kMaxStops || value.get(text) != simdjson::SUCCESS || text.empty() ||
        text.size() > kMaxStopBytes) {
      return fields.fail("stop_sequences", value,
                         "a list of at most " + std::to_string(kMaxStops) + " strings of 1 to " +
                             std::to_string(kMaxStopBytes) + " bytes");
    }
    call.stop.emplace_back(text);
  }
}

void read_tool_choice(JsonFields& fields, ToolUse& use) {
  auto choice = fields.object("tool_choice");
  if (!choice) return;
  std::string type;
  bool only_one = false;
  choice->read("type", type);
  choice->read("disable_parallel_tool_use", only_one);
  if (only_one) use.parallel = false;
  if (type == "any" || type == "tool") {
    use.mode = ToolMode::kRequired;
  } else if (type == "none") {
    use.mode = ToolMode::kNone;
  } else if (type != "auto") {
    choice->fail(invalid_field("tool_choice.type",
                               "`tool_choice.type` is \"" + type.substr(0, 40) +
                                   "\"; it must be \"auto\", \"any\", \"tool\" or \"none\""));
  }
  if (type == "tool") {
    std::string name;
    choice->read("name", name);
    if (!choice->failed() && name.empty()) {
      choice->fail(invalid_field("tool_choice.name",
                                 "`tool_choice.name` is missing; it must be a tool's name"));
    }
    use.allowed.push_back(std::move(name));
    use.parallel = false;  // one tool is named: one call of it
  }
  fields.fail_with(*choice);
}

/// As read_tools does it in OpenAI's words.
void read_message_tools(JsonFields& fields, bool may_be_known, ordered_json& shown, ToolUse& use) {
  auto list = ordered_json::array();
  if (!fields.failed()) read_tool_list(fields, ToolShape::kDescribed, use, list);
  if (!fields.failed()) read_tool_choice(fields, use);
  if (fields.failed()) return;
  if (use.specs.empty()) {
    if (use.mode == ToolMode::kRequired && !may_be_known) {
      fields.fail(
          invalid_field("tool_choice", "`tool_choice` asks for a call, but there are no `tools`"));
    }
    return;
  }
  for (const std::string& name : use.allowed) {
    if (find_tool(use.specs, name) != nullptr) continue;
    return fields.fail(
        invalid_field("tool_choice.name", "`tool_choice.name` is \"" + name.substr(0, 40) +
                                              "\", which is not the name of one of the `tools`"));
  }
  if (use.mode != ToolMode::kNone) shown = std::move(list);
}

/// `thinking` switches what templates call `enable_thinking` or `thinking`. Its budget is not
/// enforced.
void read_thinking(JsonFields& fields, ApiCall& call, ordered_json& kwargs) {
  auto thinking = fields.object("thinking");
  if (!thinking) return;
  std::string type;
  thinking->read("type", type);
  thinking->integer("budget_tokens", 1, kMaxInt32);
  std::string display;
  thinking->read("display", display);
  if (display == "omitted") call.show.reasoning = false;
  if (type == "enabled" || type == "disabled") {
    for (const char* name : {"enable_thinking", "thinking"})
      if (!kwargs.contains(name)) kwargs[name] = type == "enabled";
  } else if (type != "adaptive" && type != "between_tools") {
    thinking->fail(invalid_field("thinking.type",
                                 "`thinking.type` is \"" + type.substr(0, 40) +
                                     "\"; it must be \"enabled\", \"disabled\" or \"adaptive\""));
  }
  fields.fail_with(*thinking);
}

/// `{"type": "json_schema", "schema": {...}}`
void read_format(JsonFields& from, const char* name, OutputFormat& output) {
  auto format = from.object(name);
  if (!format) return;
  std::string type;
  format->read("type", type);
  if (!format->failed() && type != "json_schema") {
    format->fail(unsupported_field(format->full_name("type"),
                                   "`" + format->full_name("type") + "` is \"" +
                                       type.substr(0, 40) + "\"; it must be \"json_schema\""));
  }
  const std::string field = format->full_name("schema");
  const auto schema = format->object("schema");
  if (!format->failed() && !schema)
    format->fail(invalid_field(field, "`" + field + "` is missing; it must be a JSON schema"));
  if (!format->failed() && output.kind != OutputKind::kText) {
    format->fail(invalid_field(field, "`" + output.field + "` and `" + field +
                                          "` are both given; a reply follows one form only"));
  }
  if (format->failed() || !schema) return from.fail_with(*format);
  output.kind = OutputKind::kJsonSchema;
  output.schema = to_ordered_json(schema->raw());
  output.field = field;
}

void read_output_config(JsonFields& fields, ApiCall& call, ordered_json& kwargs) {
  if (auto config = fields.object("output_config")) {
    std::string effort;
    config->read("effort", effort);
    if (!effort.empty() && !kwargs.contains("reasoning_effort"))
      kwargs["reasoning_effort"] = effort.substr(0, 64);
    read_format(*config, "format", call.output);
    fields.fail_with(*config);
  }
  if (!fields.failed()) read_format(fields, "output_format", call.output);
}

/// What is well known but not served, or has no place in the answer.
void refuse_unserved(JsonFields& fields, const ApiCall& call) {
  const auto refuse = [&](const char* name, const char* why) {
    fields.fail(unsupported_field(name, "`" + std::string(name) + "` " + why));
  };
  const char* other = "has no place in a message; ask /v1/chat/completions for it";
  if (call.num_choices != 1) refuse("n", other);
  if (call.logprobs) refuse("logprobs", other);
  if (call.show.prompt_logprobs >= 0) refuse("prompt_logprobs", other);
  if (call.show.echo) refuse("echo", other);
  if (fields.find("container")) refuse("container", "is not supported; leave it out");
  if (const auto servers = fields.array("mcp_servers"); servers && servers->size() > 0)
    refuse("mcp_servers", "is not supported; leave it out");
}

/// The part of a body that the prompt follows from.
ChatPrompt read_prompt(JsonFields& fields, ApiCall& call) {
  ChatPrompt prompt;
  const bool in_session = !call.session_id.empty();
  read_conversation(fields, prompt, call.cache, /*may_be_empty=*/in_session && !call.replace);
  if (!fields.failed()) read_message_tools(fields, in_session, prompt.tools, call.tools);
  if (const auto kwargs = fields.object("chat_template_kwargs"))
    prompt.template_kwargs = to_ordered_json(kwargs->raw());
  read_reasoning_effort(fields, prompt.template_kwargs);
  if (!fields.failed()) read_thinking(fields, call, prompt.template_kwargs);
  if (!fields.failed()) read_output_config(fields, call, prompt.template_kwargs);
  return prompt;
}

}  // namespace

void read_messages_call(JsonFields& fields, ApiCall& call) {
  if (!fields.failed() && !call.max_tokens) {
    fields.fail(invalid_field("max_tokens",
                              "`max_tokens` is missing; it must be a whole number: the most tokens "
                              "that the answer may have"));
  }
  read_stop_sequences(fields, call);
  refuse_unserved(fields, call);
  if (fields.failed()) return;
  ChatPrompt prompt = read_prompt(fields, call);
  if (fields.failed()) return;
  call.hides_tools = call.tools.mode == ToolMode::kNone;
  fields.read("include_reasoning", call.show.reasoning);
  if (!call.session_id.empty()) {
    call.has_template_kwargs = !prompt.template_kwargs.empty();
    if (prompt.continue_final_message || call.max_tokens == 0U) {
      return fields.fail(invalid_field(
          "session_id", "`session_id` is given, but the request is not a turn that is answered: " +
                            std::string(call.max_tokens == 0U ? "`max_tokens` is 0"
                                                              : "its last message is an "
                                                                "assistant's")));
    }
  }
  // Anthropic's way to fill the cache.
  if (call.max_tokens == 0U) call.cache.prewarm = true;
  call.prompts.emplace_back(std::move(prompt));
}

ApiResult<std::string> count_message_tokens(std::string_view body, const ServedModels& models) {
  JsonBody json;
  if (auto error = json.parse(body)) return std::move(*error);
  JsonFields fields(json.root());
  ApiCall call;
  call.kind = ApiKind::kMessages;
  fields.read("model", call.model);
  if (auto error = fields.error()) return std::move(*error);
  const auto model = require_model(models, call.model);
  if (const auto* error = std::get_if<ApiError>(&model)) return *error;
  const ChatPrompt prompt = read_prompt(fields, call);
  if (auto error = fields.error()) return std::move(*error);
  const auto tokens = std::get<ServedModelPtr>(model)->codec->encode_chat(prompt);
  if (!tokens) {
    ApiError error = to_api_error(tokens.error());
    error.param = "messages";
    return error;
  }
  return R"({"input_tokens":)" + std::to_string(tokens->size()) + "}";
}

}  // namespace thaw::coalescer
