#include "engine/text/chat_template.h"

#include <cmath>
#include <optional>
#include <utility>

#include "engine/text/jinja/error.h"
#include "engine/text/jinja/interpreter.h"
#include "engine/text/jinja/parser.h"

namespace thaw::text {
namespace {

using jinja::Origin;
using jinja::Value;

constexpr std::size_t kMaxSourceBytes = std::size_t{1} << 20;

Error template_error(const jinja::TemplateError& error) {
  if (error.raised()) return make_error(Errc::kInvalidArgument, error.what());
  return make_error(Errc::kInvalidArgument,
                    "chat template, line " + std::to_string(error.line()) + ": " + error.what());
}

/// What the template sees under `name`. Only bos_token and eos_token count as the template's own
/// text: they come with the model, all else with the request.
std::optional<Value> variable(const RenderOptions& options, const std::string& name) {
  if (name == "messages") return Value::from_json(options.messages, Origin::kUser);
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
};

ChatTemplate::ChatTemplate(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ChatTemplate::~ChatTemplate() = default;

Result<std::unique_ptr<ChatTemplate>> ChatTemplate::parse(const std::string& source) {
  if (source.size() > kMaxSourceBytes) {
    return make_error(Errc::kInvalidArgument,
                      "the chat template has " + std::to_string(source.size()) +
                          " bytes; at most " + std::to_string(kMaxSourceBytes) + " are accepted");
  }
  try {
    auto impl = std::make_unique<Impl>(Impl{jinja::parse(source)});
    return std::unique_ptr<ChatTemplate>(new ChatTemplate(std::move(impl)));
  } catch (const jinja::TemplateError& error) {
    return template_error(error);
  }
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
  try {
    const jinja::Text text = jinja::render(impl_->parsed, context);
    std::vector<RenderedSpan> spans;
    text.for_each_run([&](std::string_view bytes, Origin origin) {
      spans.push_back({std::string(bytes), origin == Origin::kTemplate});
    });
    return spans;
  } catch (const jinja::TemplateError& error) {
    return template_error(error);
  }
}

}  // namespace thaw::text
