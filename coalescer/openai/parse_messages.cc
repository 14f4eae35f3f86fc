#include "coalescer/openai/parse_messages.h"

#include <optional>
#include <string>
#include <utility>

#include "coalescer/openai/cache_fields.h"
#include "coalescer/openai/reasoning.h"

namespace thaw::coalescer {
namespace {

using nlohmann::ordered_json;
using simdjson::dom::element;

/// The text of `content`; an error otherwise.
ApiResult<std::string> content_text(element content, const std::string& name) {
  std::string_view text;
  if (content.is_null()) return std::string();
  if (content.get(text) == simdjson::SUCCESS) return std::string(text);
  simdjson::dom::array parts;
  if (content.get(parts) != simdjson::SUCCESS) {
    return invalid_field(name, "`" + name + "` is " + json_type_name(content) +
                                   "; it must be a string, null or a list of text parts");
  }
  std::string joined;
  std::size_t index = 0;
  for (const element part : parts) {
    const std::string part_name = name + "[" + std::to_string(index) + "]";
    std::string_view type;
    if (part["type"].get(type) != simdjson::SUCCESS) {
      return invalid_field(part_name, "`" + part_name +
                                          "` must be an object with a `type`, such as "
                                          "{\"type\": \"text\", \"text\": \"...\"}");
    }
    const bool is_refusal = type == "refusal";
    if (!is_refusal && type != "text" && type != "input_text" && type != "output_text") {
      return unsupported_field(part_name, "`" + part_name + "` has type \"" + std::string(type) +
                                              "\"; this model reads text parts only");
    }
    const char* key = is_refusal ? "refusal" : "text";
    if (part[key].get(text) != simdjson::SUCCESS) {
      std::string name = part_name;
      name.append(".").append(key);
      return invalid_field(name, "`" + name + "` must be a string");
    }
    simdjson::dom::object object;
    if (part.get(object) == simdjson::SUCCESS) {
      JsonFields fields(object, part_name + ".");
      read_cache_breakpoint(fields);
      if (const auto& error = fields.error()) return *error;
    }
    if (index++ > 0) joined += '\n';
    joined += text;
  }
  return joined;
}

/// Parses the JSON text in `function.arguments`; leaves it where it is not an object.
void open_arguments(ordered_json& message) {
  const auto calls = message.find("tool_calls");
  if (calls == message.end() || !calls->is_array()) return;
  for (ordered_json& call : *calls) {
    if (!call.is_object() || !call.contains("function") || !call["function"].is_object()) continue;
    ordered_json& function = call["function"];
    const auto arguments = function.find("arguments");
    if (arguments == function.end() || !arguments->is_string()) continue;
    const auto& text = arguments->get_ref<const std::string&>();
    if (text.find_first_not_of(" \t\r\n") == std::string::npos) {
      *arguments = ordered_json::object();
      continue;
    }
    JsonBody body;
    if (body.parse(text)) continue;
    *arguments = to_ordered_json(body.root());
  }
}

/// What older and other clients call differently, by the names that templates know.
void rename_fields(ordered_json& message) {
  if (message["role"] == "developer") message["role"] = "system";
  if (message["role"] == "function") message["role"] = "tool";
  const auto call = message.find("function_call");
  if (call != message.end() && call->is_object() && !message.contains("tool_calls")) {
    ordered_json entry = {{"type", "function"}, {"function", *call}};
    message["tool_calls"] = ordered_json::array({std::move(entry)});
  }
  message.erase("function_call");
  const auto reasoning = message.find("reasoning");
  if (reasoning != message.end() && reasoning->is_string() &&
      !message.contains("reasoning_content")) {
    ordered_json thought = *reasoning;  // a new key moves the others
    message["reasoning_content"] = std::move(thought);
  }
}

ApiResult<ordered_json> read_message(element value, const std::string& name) {
  simdjson::dom::object object;
  if (value.get(object) != simdjson::SUCCESS) {
    return invalid_field(name, "`" + name + "` is " + json_type_name(value) +
                                   "; it must be an object with `role` and `content`");
  }
  std::string_view role;
  if (object["role"].get(role) != simdjson::SUCCESS || role.empty()) {
    return invalid_field(name + ".role", "`" + name +
                                             ".role` must be a string such as \"user\", \"system\" "
                                             "or \"assistant\"");
  }
  std::string text;
  element content;
  if (object["content"].get(content) == simdjson::SUCCESS) {
    auto read = content_text(content, name + ".content");
    if (auto* error = std::get_if<ApiError>(&read)) return *error;
    text = std::move(std::get<std::string>(read));
  } else if (role != "assistant") {
    return invalid_field(name + ".content", "`" + name + ".content` is missing");
  }
  ordered_json message = to_ordered_json(value);
  rename_fields(message);
  message["content"] = std::move(text);
  open_arguments(message);
  return message;
}

/// How the rendering ends, and what the template sees besides the messages.
void read_template_fields(JsonFields& fields, ChatPrompt& prompt) {
  fields.read("continue_final_message", prompt.continue_final_message);
  const bool calls_for_reply = fields.find("add_generation_prompt").has_value();
  fields.read("add_generation_prompt", prompt.add_generation_prompt);
  if (const auto documents = fields.find("documents")) {
    if (!documents->is_array()) return fields.fail("documents", *documents, "a list");
    prompt.template_kwargs["documents"] = to_ordered_json(*documents);
  }
  if (fields.failed() || !prompt.continue_final_message) return;
  if (prompt.messages.empty()) {
    return fields.fail(invalid_field("continue_final_message",
                                     "`continue_final_message` is true but there is no message"));
  }
  if (calls_for_reply && prompt.add_generation_prompt) {
    return fields.fail(
        invalid_field("continue_final_message",
                      "`continue_final_message` and `add_generation_prompt` are both true; a reply "
                      "either goes on with the last message or is a message of its own"));
  }
  prompt.add_generation_prompt = false;
}

void read_messages(JsonFields& fields, simdjson::dom::array messages, ChatPrompt& prompt) {
  for (const element value : messages) {
    const std::string name = "messages[" + std::to_string(prompt.messages.size()) + "]";
    auto message = read_message(value, name);
    if (auto* error = std::get_if<ApiError>(&message)) return fields.fail(std::move(*error));
    prompt.messages.push_back(std::move(std::get<ordered_json>(message)));
  }
}

}  // namespace

ToolUse read_chat_prompt(JsonFields& fields, ChatPrompt& prompt, bool may_be_empty,
                         bool may_know_tools) {
  const auto messages = fields.array("messages");
  if (!fields.failed() && !messages && !may_be_empty)
    fields.fail(invalid_field("messages", "`messages` is missing; it must be a list"));
  if (!fields.failed() && messages) read_messages(fields, *messages, prompt);
  if (!fields.failed() && prompt.messages.empty() && !may_be_empty) {
    fields.fail(
        invalid_field("messages", "`messages` is empty; it must hold at least one message"));
  }
  if (fields.failed()) return {};
  ToolUse tools = read_tools(fields, prompt.tools, may_know_tools);
  if (const auto kwargs = fields.object("chat_template_kwargs"))
    prompt.template_kwargs = to_ordered_json(kwargs->raw());
  read_reasoning_effort(fields, prompt.template_kwargs);
  read_template_fields(fields, prompt);
  return tools;
}

}  // namespace thaw::coalescer
