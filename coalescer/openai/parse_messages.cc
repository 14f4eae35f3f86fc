#include "coalescer/openai/parse_messages.h"

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "coalescer/openai/reasoning.h"

namespace thaw::coalescer {
namespace {

using nlohmann::ordered_json;
using simdjson::dom::element;

/// The text of `content`; an error otherwise. `ends` gets the places in it that are marked as
/// breakpoints.
ApiResult<std::string> content_text(element content, const std::string& name,
                                    std::vector<std::size_t>& ends) {
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
    if (index++ > 0) joined += '\n';
    joined += text;
    simdjson::dom::object object;
    if (part.get(object) == simdjson::SUCCESS) {
      JsonFields fields(object, part_name + ".");
      if (read_cache_breakpoint(fields)) ends.push_back(joined.size());
      if (const auto& error = fields.error()) return *error;
    }
  }
  return joined;
}

/// Parses the JSON text in `function.arguments` of each call.
void open_calls(ordered_json& message) {
  const auto calls = message.find("tool_calls");
  if (calls == message.end() || !calls->is_array()) return;
  for (ordered_json& call : *calls) {
    if (!call.is_object() || !call.contains("function") || !call["function"].is_object()) continue;
    ordered_json& function = call["function"];
    const auto arguments = function.find("arguments");
    if (arguments != function.end() && arguments->is_string())
      *arguments = open_arguments(arguments->get_ref<const std::string&>());
  }
}

/// The message without what counts as left out: templates ask whether a member is there, not
/// whether it says anything. Clients send back what they were answered, with `tool_calls: null`.
ordered_json given_members(simdjson::dom::object object) {
  auto message = ordered_json::object();
  for (const auto member : object) {
    simdjson::dom::array calls;
    if (member.value.is_null()) continue;
    if (member.key == "tool_calls" && member.value.get(calls) == simdjson::SUCCESS &&
        calls.begin() == calls.end())
      continue;
    append_member(message, member.key, to_ordered_json(member.value));
  }
  return message;
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

ApiResult<ordered_json> read_message(element value, const std::string& name,
                                     std::vector<std::size_t>& ends) {
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
    auto read = content_text(content, name + ".content", ends);
    if (auto* error = std::get_if<ApiError>(&read)) return *error;
    text = std::move(std::get<std::string>(read));
  } else if (role != "assistant") {
    return invalid_field(name + ".content", "`" + name + ".content` is missing");
  }
  ordered_json message = given_members(object);
  rename_fields(message);
  message["content"] = std::move(text);
  open_calls(message);
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

void read_messages(JsonFields& fields, simdjson::dom::array messages, ChatPrompt& prompt,
                   std::vector<ContentBreakpoint>& breakpoints) {
  for (const element value : messages) {
    const std::string name = item_name("messages", prompt.messages.size());
    std::vector<std::size_t> ends;
    auto message = read_message(value, name, ends);
    if (auto* error = std::get_if<ApiError>(&message)) return fields.fail(std::move(*error));
    for (const std::size_t end : ends)
      breakpoints.push_back({prompt.messages.size(), end});
    prompt.messages.push_back(std::move(std::get<ordered_json>(message)));
  }
}

}  // namespace

ToolUse read_chat_prompt(JsonFields& fields, ChatPrompt& prompt, bool may_be_empty,
                         bool may_know_tools, CacheFields* cache) {
  const auto messages = fields.array("messages");
  if (!fields.failed() && !messages && !may_be_empty)
    fields.fail(invalid_field("messages", "`messages` is missing; it must be a list"));
  CacheFields unused;
  CacheFields& marked = cache != nullptr ? *cache : unused;
  if (!fields.failed() && messages) read_messages(fields, *messages, prompt, marked.breakpoints);
  count_breakpoints(fields, "messages", marked.breakpoints.size(), marked);
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
