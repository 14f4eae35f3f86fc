#include "coalescer/openai/reply_plan.h"

#include <algorithm>
#include <utility>
#include <variant>

#include "coalescer/openai/call.h"
#include "coalescer/openai/tool_grammar.h"

namespace thaw::coalescer {
namespace {

/// A model that was made for calls may make several at once; of another one the first is plenty:
/// it does not know where to stop.
bool is_parallel(const ToolUse& use, const ChatForm& form) {
  if (use.parallel) return *use.parallel;
  return form.template_has_tools && form.tools != ToolForm::kLlama3Json;
}

bool answers_a_tool(const ApiCall& call) {
  const auto* chat = call.prompts.empty() ? nullptr : std::get_if<ChatPrompt>(&call.prompts[0]);
  if (chat == nullptr || chat->messages.empty()) return false;
  const auto role = chat->messages.back().find("role");
  return role != chat->messages.back().end() && *role == "tool";
}

ApiError no_such_tool(const ToolUse& use, const std::string& name) {
  return invalid_field(use.legacy ? "function_call" : "tool_choice",
                       name.empty() ? "a tool call is asked for, but there are no `tools`"
                                    : "the function \"" + name.substr(0, 40) +
                                          "\" is asked for, which is not among the tools");
}

std::string tools_field(const ToolUse& use) {
  return use.legacy ? "functions" : "tools";
}

ApiError grammar_too_long(const std::string& field) {
  return invalid_field(field, "the schemas of `" + field + "` make a grammar of more than " +
                                  std::to_string(kMaxGrammarBytes) +
                                  " bytes, the most that is accepted; use fewer or smaller ones");
}

}  // namespace

ApiResult<ReplyPlan> plan_reply(const ApiCall& call, std::span<const TokenId> prompt,
                                std::string_view known_tools, bool eager, const TextCodec& codec,
                                bool has_grammars) {
  const ChatForm& form = codec.form();
  ReplyPlan plan;
  const bool is_chat = call.kind != ApiKind::kCompletions;
  if (is_chat) plan.thinking = thinking_start(form, prompt, codec);
  ToolUse use = call.tools;
  if (use.specs.empty() && !call.has_tools && !known_tools.empty())
    use.specs = tools_of_list(known_tools);
  if (use.mode == ToolMode::kRequired && use.specs.empty()) return no_such_tool(use, "");
  for (const std::string& name : use.allowed)
    if (find_tool(use.specs, name) == nullptr) return no_such_tool(use, name);
  const bool can_call = is_chat && !use.specs.empty() && use.mode != ToolMode::kNone;
  ReplyShape shape;
  shape.output = &call.output;
  shape.thinking = plan.thinking;
  if (can_call) {
    shape.tools = &use;
    shape.parallel = is_parallel(use, form);
    shape.must_call =
        use.mode == ToolMode::kRequired || (use.eager.value_or(eager) && !answers_a_tool(call));
  }
  const bool may_be_free = !shape.must_call && call.output.kind == OutputKind::kText;
  if (has_grammars || !may_be_free) plan.grammar = grammar_document(shape, form);
  if (plan.grammar.size() > kMaxGrammarBytes)
    return grammar_too_long(can_call ? tools_field(use) : call.output.field);
  if (can_call) plan.tools = std::make_shared<std::vector<ToolSpec>>(std::move(use.specs));
  return plan;
}

ReplyReading reply_reading(const ReplyPlan& plan, std::size_t choice, const TextCodec& codec) {
  ReplyReading reading;
  reading.form = codec.form();
  reading.thinking = plan.thinking;
  reading.tools = plan.tools;
  reading.constrained = !plan.grammar.empty();
  reading.id_seed = plan.id + "/" + std::to_string(choice);
  return reading;
}

HiddenMarkers::HiddenMarkers(const ApiCall& call, const TextCodec& codec) {
  if (call.keep_special) return;
  const ChatForm& form = codec.form();
  std::vector<std::string> texts;
  if (call.reply.tools != nullptr) texts = control_markers(form.tools);
  if (call.reply.thinking != ThinkingStart::kNone) {
    texts.push_back(form.think_begin);
    texts.push_back(form.think_end);
  }
  for (std::string& text : texts) {
    const std::vector<TokenId> tokens = codec.encode_text(text, /*add_special=*/false);
    if (tokens.size() == 1 && codec.decode(tokens, /*keep_special=*/false).empty())
      markers_.emplace_back(tokens.front(), std::move(text));
  }
}

std::string_view HiddenMarkers::text_of(TokenId token) const {
  for (const auto& [marker, text] : markers_)
    if (marker == token) return text;
  return {};
}

}  // namespace thaw::coalescer
