#include "coalescer/openai/tool_prompt.h"

#include <algorithm>
#include <string>
#include <utility>

#include "coalescer/openai/json_text.h"

namespace thaw::coalescer {
namespace {

using nlohmann::ordered_json;

/// Short: small models lose the thread of a long one.
std::string description(const ordered_json& tools) {
  std::string text =
      "You can call the functions below. Each line describes one, with its arguments as a JSON "
      "schema.\n<tools>\n";
  for (const ordered_json& tool : tools)
    text += dump_json(tool) + "\n";
  text +=
      "</tools>\nA call is a JSON object inside of <tool_call> tags. Copy the values of its "
      "arguments from the question:\n<tool_call>\n{\"name\": \"the function\", \"arguments\": "
      "{\"an argument\": \"its value\"}}\n</tool_call>";
  return text;
}

/// A field that the client should have sent as a string.
std::string text_of(const ordered_json& object, const char* name) {
  const auto found = object.find(name);
  return found != object.end() && found->is_string() ? found->get<std::string>() : "";
}

std::string call_text(const ordered_json& call) {
  const auto inner = call.find("function");
  const ordered_json& function = inner != call.end() && inner->is_object() ? *inner : call;
  ordered_json shown;
  shown["name"] = text_of(function, "name");
  const auto arguments = function.find("arguments");
  shown["arguments"] = arguments == function.end() ? ordered_json::object() : *arguments;
  return "<tool_call>\n" + dump_json(shown) + "\n</tool_call>";
}

ordered_json message_as_text(const ordered_json& message) {
  const std::string role = text_of(message, "role");
  ordered_json plain = message;
  if (role == "tool") {
    plain["role"] = "user";
    plain["content"] = "<tool_response>\n" + text_of(message, "content") + "\n</tool_response>";
    plain.erase("tool_call_id");
  }
  const auto calls = message.find("tool_calls");
  if (calls == message.end() || !calls->is_array()) return plain;
  std::string content = text_of(message, "content");
  for (const ordered_json& call : *calls) {
    if (!call.is_object()) continue;
    if (!content.empty()) content += '\n';
    content += call_text(call);
  }
  plain["content"] = std::move(content);
  plain.erase("tool_calls");
  return plain;
}

}  // namespace

bool speaks_of_tools(const ChatPrompt& prompt) {
  return !prompt.tools.is_null() ||
         std::any_of(prompt.messages.begin(), prompt.messages.end(), [](const auto& message) {
           return text_of(message, "role") == "tool" || message.contains("tool_calls");
         });
}

ChatPrompt tools_as_text(const ChatPrompt& prompt) {
  ChatPrompt plain = prompt;
  plain.tools = nullptr;
  for (ordered_json& message : plain.messages)
    message = message_as_text(message);
  if (!prompt.tools.is_array() || prompt.tools.empty()) return plain;
  const std::string tools = description(prompt.tools);
  if (!plain.messages.empty() && text_of(plain.messages[0], "role") == "system") {
    ordered_json& system = plain.messages[0];
    const std::string given = text_of(system, "content");
    system["content"] = given.empty() ? tools : given + "\n\n" + tools;
  } else {
    const ordered_json system = {{"role", "system"}, {"content", tools}};
    plain.messages.insert(plain.messages.begin(), system);
  }
  return plain;
}

}  // namespace thaw::coalescer
