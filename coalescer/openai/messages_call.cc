#include "coalescer/openai/messages_call.h"

#include <utility>

#include "coalescer/openai/messages_conversation.h"
#include "coalescer/openai/reasoning.h"
#include "coalescer/openai/shapes.h"

namespace thaw::coalescer {
namespace {

using nlohmann::ordered_json;
using simdjson::dom::element;

void read_stop_sequences(JsonFields& fields, ApiCall& call) {
  const auto list = fields.array("stop_sequences");
  if (!list || fields.failed()) return;
  for (const element value : *list) {
    std::string_view text;
    if (value.get(text) == simdjson::SUCCESS) call.stop.emplace_back(text);
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
  std::string display;
  thinking->read("display", display);
  if (display == "omitted") call.show.reasoning = false;
  if (type == "enabled" || type == "disabled") {
    for (const char* name : {"enable_thinking", "thinking"})
      if (!kwargs.contains(name)) kwargs[name] = type == "enabled";
  }
}

/// `{"type": "json_schema", "schema": {...}}`
void read_format(JsonFields& from, const char* name, OutputFormat& output) {
  auto format = from.object(name);
  if (!format) return;
  const std::string field = format->full_name("schema");
  const auto schema = format->object("schema");
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
      kwargs["reasoning_effort"] = effort;
    read_format(*config, "format", call.output);
    fields.fail_with(*config);
  }
  if (!fields.failed()) read_format(fields, "output_format", call.output);
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
  read_stop_sequences(fields, call);
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
  if (auto error = check_shape(kCountTokensShape, json.root())) return std::move(*error);
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
