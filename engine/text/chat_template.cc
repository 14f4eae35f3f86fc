#include "engine/text/chat_template.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>

#include "engine/text/jinja/error.h"
#include "engine/text/jinja/interpreter.h"
#include "engine/text/jinja/parser.h"

namespace thaw::text {
namespace {

using jinja::Origin;
using jinja::Value;

constexpr std::size_t kMaxSourceBytes = std::size_t{1} << 20;
constexpr const char* kDefaultName = "chat template";
constexpr const char* kToolName = "chat template `tool_use`";

Error template_error(const jinja::TemplateError& error, const std::string& name) {
  if (error.raised()) return make_error(Errc::kInvalidArgument, error.what());
  return make_error(Errc::kInvalidArgument,
                    name + ", line " + std::to_string(error.line()) + ": " + error.what());
}

Result<jinja::Template> parse_source(const std::string& source, const std::string& name) {
  if (source.size() > kMaxSourceBytes) {
    return make_error(Errc::kInvalidArgument,
                      "the " + name + " has " + std::to_string(source.size()) + " bytes; at most " +
                          std::to_string(kMaxSourceBytes) + " are accepted");
  }
  try {
    return jinja::parse(source);
  } catch (const jinja::TemplateError& error) {
    return template_error(error, name);
  }
}

/// A role of the usual ones counts as the template's own text: templates build their tokens around
/// it ('<|' + role + '|>'), and none of these words says what the user chose.
bool is_usual_role(const std::string& role) {
  constexpr std::string_view kRoles[] = {"system", "user",      "assistant",
                                         "tool",   "developer", "function"};
  return std::find(std::begin(kRoles), std::end(kRoles), role) != std::end(kRoles);
}

/// A message's reasoning under any of the names that clients give it, or null.
const nlohmann::ordered_json* reasoning_of(const nlohmann::ordered_json& message) {
  for (const char* name : {"reasoning_content", "thinking", "reasoning"}) {
    const auto found = message.find(name);
    if (found != message.end() && !found->is_null()) return &*found;
  }
  return nullptr;
}

/// As transformers prepares a message: reasoning has both names that templates read.
Value message_value(const nlohmann::ordered_json& message) {
  if (!message.is_object()) return Value::from_json(message, Origin::kUser);
  auto dict = std::make_shared<jinja::Dict>();
  const auto set = [&](const std::string& key, const nlohmann::ordered_json& value) {
    const bool trusted =
        key == "role" && value.is_string() && is_usual_role(value.get_ref<const std::string&>());
    dict->set(Value::text(key, Origin::kUser),
              Value::from_json(value, trusted ? Origin::kTemplate : Origin::kUser));
  };
  const nlohmann::ordered_json* reasoning = reasoning_of(message);
  if (reasoning != nullptr) set("thinking", *reasoning);
  for (const auto& [key, value] : message.items())
    set(key, value);
  if (reasoning != nullptr) set("reasoning_content", *reasoning);
  return Value(std::shared_ptr<const jinja::Dict>(std::move(dict)));
}

Value messages_value(const nlohmann::ordered_json& messages) {
  if (!messages.is_array()) return Value::from_json(messages, Origin::kUser);
  std::vector<Value> values;
  values.reserve(messages.size());
  for (const nlohmann::ordered_json& message : messages)
    values.push_back(message_value(message));
  return Value::list(std::move(values));
}

/// What the template sees under `name`. Only bos_token, eos_token and usual roles count as the
/// template's own text: all else comes with the request.
std::optional<Value> variable(const RenderOptions& options, const std::string& name) {
  if (name == "messages") return messages_value(options.messages);
  if (name == "tools") return Value::from_json(options.tools, Origin::kUser);
  if (name == "add_generation_prompt") return Value::boolean(options.add_generation_prompt);
  if (options.extra.is_object()) {
    const auto found = options.extra.find(name);
    if (found != options.extra.end()) return Value::from_json(*found, Origin::kUser);
  }
  if (name == "bos_token") return Value::text(options.bos_token, Origin::kTemplate);
  if (name == "eos_token") return Value::text(options.eos_token, Origin::kTemplate);
  if (name == "documents") return Value();
  return std::nullopt;
}

}  // namespace

struct ChatTemplate::Impl {
  jinja::Template parsed;
  std::optional<jinja::Template> for_tools;
  std::string source;
};

ChatTemplate::ChatTemplate(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ChatTemplate::~ChatTemplate() = default;

const std::string& ChatTemplate::source() const {
  return impl_->source;
}

Result<std::unique_ptr<ChatTemplate>> ChatTemplate::parse(const std::string& source,
                                                          const std::string& tool_source) {
  auto parsed = parse_source(source, kDefaultName);
  if (!parsed) return std::move(parsed).error();
  auto impl = std::make_unique<Impl>(Impl{*std::move(parsed), std::nullopt, source + tool_source});
  if (!tool_source.empty()) {
    auto for_tools = parse_source(tool_source, kToolName);
    if (!for_tools) return std::move(for_tools).error();
    impl->for_tools = *std::move(for_tools);
  }
  return std::unique_ptr<ChatTemplate>(new ChatTemplate(std::move(impl)));
}

Result<std::vector<RenderedSpan>> ChatTemplate::render(const RenderOptions& options) const {
  for (const char* name : {"messages", "tools", "add_generation_prompt"}) {
    if (options.extra.is_object() && options.extra.contains(name)) {
      return make_error(Errc::kInvalidArgument, std::string("chat_template_kwargs must not set '") +
                                                    name + "', which has a field of its own");
    }
  }
  jinja::RenderContext context;
  context.variable = [&](const std::string& name) { return variable(options, name); };
  context.now_unix_seconds = options.now_unix_seconds;
  context.max_work = options.max_work;
  const auto& for_tools = impl_->for_tools;
  const auto& parsed = for_tools && !options.tools.is_null() ? *for_tools : impl_->parsed;
  try {
    const jinja::Text text = jinja::render(parsed, context);
    std::vector<RenderedSpan> spans;
    text.for_each_run([&](std::string_view bytes, Origin origin) {
      spans.push_back({std::string(bytes), origin == Origin::kTemplate});
    });
    return spans;
  } catch (const jinja::TemplateError& error) {
    return template_error(error, for_tools ? kToolName : kDefaultName);
  }
}

}  // namespace thaw::text
