#include "coalescer/openai/tool_form.h"

#include <cctype>

namespace thaw::coalescer {
namespace {

bool has(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

bool is_word(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_';
}

/// `tools` as a variable of the template: a word inside of `{{ }}` or `{% %}`.
bool names_tools(std::string_view source) {
  constexpr std::string_view kWord = "tools";
  for (std::size_t at = source.find('{'); at != std::string_view::npos;
       at = source.find('{', at + 1)) {
    const std::string_view open = source.substr(at, 2);
    if (open != "{{" && open != "{%") continue;
    const std::size_t end = source.find(open == "{{" ? "}}" : "%}", at + 2);
    const std::string_view code = source.substr(at + 2, end - at - 2);
    for (std::size_t word = code.find(kWord); word != std::string_view::npos;
         word = code.find(kWord, word + 1)) {
      const bool begins = word == 0 || !is_word(code[word - 1]);
      const std::size_t after = word + kWord.size();
      if (begins && (after >= code.size() || !is_word(code[after]))) return true;
    }
  }
  return false;
}

/// One line of the table: a marker and the form it tells of. The first that is found counts.
struct Marker {
  std::string_view text;
  ToolForm form;
};

constexpr Marker kMarkers[] = {
    {"[TOOL_CALLS]", ToolForm::kMistral},         {"<function=", ToolForm::kFunctionTag},
    {"<tool_call>[", ToolForm::kHermesList},      {"<tool_call>", ToolForm::kHermes},
    {"<|tool_call_start|>", ToolForm::kPythonic}, {"[func_name1(", ToolForm::kPythonic},
    {"<|python_tag|>", ToolForm::kLlama3Json},    {"ipython", ToolForm::kLlama3Json},
};

}  // namespace

ChatForm form_of_template(std::string_view source) {
  ChatForm form;
  form.template_has_tools = names_tools(source);
  for (const Marker& marker : kMarkers) {
    if (!form.template_has_tools || !has(source, marker.text)) continue;
    form.tools = marker.form;
    break;
  }
  if (has(source, "</think>")) {
    form.think_begin = "<think>";
    form.think_end = "</think>";
  } else if (has(source, "[/THINK]")) {
    form.think_begin = "[THINK]";
    form.think_end = "[/THINK]";
  }
  return form;
}

const std::vector<std::string>& call_triggers(ToolForm form) {
  static const std::vector<std::string> tag = {"<tool_call>"};
  static const std::vector<std::string> function = {"<tool_call>", "<function="};
  static const std::vector<std::string> mistral = {"[TOOL_CALLS]"};
  static const std::vector<std::string> bracket = {"<|tool_call_start|>"};
  static const std::vector<std::string> none;
  switch (form) {
    case ToolForm::kHermes:
    case ToolForm::kHermesList:
      return tag;
    case ToolForm::kFunctionTag:
      return function;
    case ToolForm::kMistral:
      return mistral;
    case ToolForm::kPythonic:
      return bracket;
    case ToolForm::kLlama3Json:
      break;
  }
  return none;
}

const std::vector<std::string>& control_markers(ToolForm form) {
  static const std::vector<std::string> tag = {"<tool_call>", "</tool_call>"};
  static const std::vector<std::string> mistral = {"[TOOL_CALLS]", "[ARGS]"};
  static const std::vector<std::string> bracket = {"<|tool_call_start|>", "<|tool_call_end|>"};
  static const std::vector<std::string> python = {"<|python_tag|>"};
  switch (form) {
    case ToolForm::kHermes:
    case ToolForm::kHermesList:
    case ToolForm::kFunctionTag:
      return tag;
    case ToolForm::kMistral:
      return mistral;
    case ToolForm::kPythonic:
      return bracket;
    case ToolForm::kLlama3Json:
      break;
  }
  return python;
}

}  // namespace thaw::coalescer
