#include "coalescer/openai/parse_messages.h"

#include <optional>
#include <string>
#include <utility>

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
    if (type != "text" && type != "input_text" && type != "output_text") {
      return unsupported_field(part_name, "`" + part_name + "` has type \"" + std::string(type) +
                                              "\"; this model reads text parts only");
    }
    if (part["text"].get(text) != simdjson::SUCCESS)
      return invalid_field(part_name + ".text", "`" + part_name + ".text` must be a string");
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
    JsonBody body;
    if (body.parse(arguments->get_ref<const std::string&>())) continue;
    *arguments = to_ordered_json(body.root());
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
  if (role == "developer") message["role"] = "system";  // templates know the older name
  message["content"] = std::move(text);
  open_arguments(message);
  return message;
}

/// False where the tools are not to be shown to the model.
bool read_tool_choice(JsonFields& fields) {
  const auto choice = fields.find("tool_choice");
  if (!choice) return true;
  std::string_view word;
  if (choice->get(word) == simdjson::SUCCESS) {
    if (word == "auto") return true;
    if (word == "none") return false;
    if (word != "required") {
      fields.fail("tool_choice", *choice, "\"auto\" or \"none\"");
      return false;
    }
  } else if (!choice->is_object()) {
    fields.fail("tool_choice", *choice, "\"auto\" or \"none\"");
    return false;
  }
  fields.fail(
      unsupported_field("tool_choice",
                        "`tool_choice` asks for a forced tool call, which is not supported yet; "
                        "\"auto\" and \"none\" are"));
  return false;
}

void read_tools(JsonFields& fields, ChatPrompt& prompt) {
  const bool show_tools = read_tool_choice(fields);
  const auto tools = fields.array("tools");
  if (!tools || fields.failed()) return;
  auto list = ordered_json::array();
  for (const element tool : *tools) {
    if (!tool.is_object()) {
      const std::string name = "tools[" + std::to_string(list.size()) + "]";
      return fields.fail(invalid_field(
          name, "`" + name + "` is " + json_type_name(tool) + "; it must be an object"));
    }
    list.push_back(to_ordered_json(tool));
  }
  if (show_tools && !list.empty()) prompt.tools = std::move(list);
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

void read_chat_prompt(JsonFields& fields, ChatPrompt& prompt, bool may_be_empty) {
  const auto messages = fields.array("messages");
  if (fields.failed()) return;
  if (!messages && !may_be_empty)
    return fields.fail(invalid_field("messages", "`messages` is missing; it must be a list"));
  if (messages) read_messages(fields, *messages, prompt);
  if (fields.failed()) return;
  if (prompt.messages.empty() && !may_be_empty) {
    return fields.fail(
        invalid_field("messages", "`messages` is empty; it must hold at least one message"));
  }
  read_tools(fields, prompt);
  if (const auto kwargs = fields.object("chat_template_kwargs"))
    prompt.template_kwargs = to_ordered_json(kwargs->raw());
  read_template_fields(fields, prompt);
}

}  // namespace thaw::coalescer
