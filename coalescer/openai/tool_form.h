#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace thaw::coalescer {

/// How a model writes a tool call as text.
enum class ToolForm : std::uint8_t {
  kHermes,  ///< `<tool_call>\n{"name": ..., "arguments": {...}}\n</tool_call>` for each call
  kHermesList,  ///< one `<tool_call>[{"name": ..., "arguments": {...}}, ...]</tool_call>`
  kLlama3Json,  ///< the reply is `{"name": ..., "parameters": {...}}`
  kPythonic,  ///< the reply is `[f(a=1), g()]`
  kFunctionTag,  ///< `<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>`
  kMistral,  ///< `[TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]`
};

/// What a chat template tells of its model's habits.
struct ChatForm {
  ToolForm tools = ToolForm::kHermes;
  /// The template writes the tools, the calls and their results. Where it does not, we describe
  /// them in the messages ourselves.
  bool template_has_tools = false;
  /// Around the model's thinking; empty: it does not think aloud.
  std::string think_begin;
  std::string think_end;

  bool thinks() const { return !think_end.empty(); }
};

/// Reads the markers that stand in a template's source. What has none is hermes, which our own
/// description of the tools asks for.
ChatForm form_of_template(std::string_view source);

/// Texts that begin calls anywhere in a reply. None for forms that only begin a reply.
const std::vector<std::string>& call_triggers(ToolForm form);

/// Markers that may be control tokens of the vocabulary, which do not show in text as such.
const std::vector<std::string>& control_markers(ToolForm form);

}  // namespace thaw::coalescer
