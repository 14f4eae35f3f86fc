#include "coalescer/openai/tool_grammar.h"

#include <algorithm>
#include <unordered_set>
#include <utility>
#include <vector>

#include "coalescer/openai/json_text.h"

namespace thaw::coalescer {
namespace {

using nlohmann::ordered_json;

ordered_json constant(std::string_view text) {
  return {{"type", "const_string"}, {"value", text}};
}

ordered_json any_text() {
  return {{"type", "any_text"}};
}

ordered_json regex(std::string_view pattern) {
  return {{"type", "regex"}, {"pattern", pattern}};
}

ordered_json schema_format(const ordered_json& schema) {
  return {{"type", "json_schema"}, {"json_schema", schema}};
}

ordered_json tag(std::string_view begin, ordered_json content, std::string_view end) {
  return {{"type", "tag"}, {"begin", begin}, {"content", std::move(content)}, {"end", end}};
}

/// `elements` one after the other, or one of them.
ordered_json combine(const char* type, ordered_json elements) {
  if (elements.size() == 1) return std::move(elements[0]);
  return {{"type", type}, {"elements", std::move(elements)}};
}

ordered_json one_of(ordered_json elements) {
  return combine("or", std::move(elements));
}

ordered_json in_order(ordered_json elements) {
  return combine("sequence", std::move(elements));
}

/// The arguments' schema; calls always have an object of them.
ordered_json arguments_schema(const ToolSpec& tool) {
  ordered_json schema = tool.parameters;
  if (schema.is_object() && !schema.contains("type") && !schema.contains("$ref") &&
      !schema.contains("anyOf") && !schema.contains("oneOf") && !schema.contains("allOf"))
    schema["type"] = "object";
  return schema;
}

/// Writes the arguments of pythonic calls.
class KeywordWriter {
 public:
  /// `a=1, b="x"`: the required ones in their order, then any of the others.
  ordered_json keywords(const ToolSpec& tool);

 private:
  /// One argument: `name=value`, the value as JSON, which the reader takes.
  ordered_json keyword(const std::string& name, ordered_json schema);

  ordered_json shared_ = ordered_json::object();  // what schemas of the tool may refer to
  std::size_t shared_bytes_ = 0;
  std::size_t copied_bytes_ = 0;  // of all tools
};

ordered_json KeywordWriter::keyword(const std::string& name, ordered_json schema) {
  // Every argument has its own copy. More of them than fit make no difference to a document that is
  // too long.
  if (schema.is_object() && !shared_.empty() && copied_bytes_ <= kMaxGrammarBytes) {
    for (const auto& [key, value] : shared_.items())
      schema[key] = value;
    copied_bytes_ += shared_bytes_;
  }
  return in_order({constant(name + "="), schema_format(schema)});
}

ordered_json KeywordWriter::keywords(const ToolSpec& tool) {
  const ordered_json schema = arguments_schema(tool);
  shared_.clear();
  for (const char* key : {"$defs", "definitions"})
    if (const auto found = schema.find(key); found != schema.end()) shared_[key] = *found;
  shared_bytes_ = dump_json(shared_).size();
  const auto properties = schema.find("properties");
  if (properties == schema.end() || !properties->is_object() || properties->empty())
    return constant("");
  std::unordered_set<std::string> required;
  if (const auto names = schema.find("required"); names != schema.end() && names->is_array())
    for (const ordered_json& name : *names)
      if (name.is_string()) required.insert(name.get<std::string>());
  auto first = ordered_json::array();
  auto others = ordered_json::array();
  for (const auto& [name, property] : properties->items()) {
    ordered_json pair = keyword(name, property);
    if (!required.contains(name)) {
      others.push_back(std::move(pair));
      continue;
    }
    if (!first.empty()) first.push_back(constant(", "));
    first.push_back(std::move(pair));
  }
  if (others.empty()) return in_order(std::move(first));
  const auto count = static_cast<int>(others.size());
  ordered_json other = one_of(std::move(others));
  const ordered_json more = in_order({constant(", "), other});
  if (!first.empty()) {
    first.push_back({{"type", "repeat"}, {"min", 0}, {"max", count}, {"content", more}});
    return in_order(std::move(first));
  }
  auto some = ordered_json::array({std::move(other)});
  if (count > 1)
    some.push_back({{"type", "repeat"}, {"min", 0}, {"max", count - 1}, {"content", more}});
  return {{"type", "optional"}, {"content", in_order(std::move(some))}};
}

/// Calls in one form: how one is written, and several.
struct CallTags {
  ordered_json tags = ordered_json::array();
  std::string separator;
  std::string before;  ///< the first of them
  std::string after;  ///< the last of them
  bool anywhere = false;  ///< may follow text; else calls are the whole reply
};

void add_json_tags(CallTags& calls, const std::vector<const ToolSpec*>& tools,
                   std::string_view begin, std::string_view arguments, std::string_view end) {
  for (const ToolSpec* tool : tools) {
    calls.tags.push_back(tag(std::string(begin) + R"({"name": ")" + tool->name + R"(", ")" +
                                 std::string(arguments) + R"(": )",
                             schema_format(arguments_schema(*tool)), "}" + std::string(end)));
  }
}

CallTags call_tags(ToolForm form, const std::vector<const ToolSpec*>& tools) {
  CallTags calls;
  switch (form) {
    case ToolForm::kHermes:
      add_json_tags(calls, tools, "<tool_call>\n", "arguments", "\n</tool_call>");
      calls.separator = "\n";
      calls.anywhere = true;
      break;
    case ToolForm::kHermesList:
      add_json_tags(calls, tools, "", "arguments", "");
      calls.separator = ", ";
      calls.before = "<tool_call>[";
      calls.after = "]</tool_call>";
      calls.anywhere = true;
      break;
    case ToolForm::kMistral:
      add_json_tags(calls, tools, "", "arguments", "");
      calls.separator = ", ";
      calls.before = "[TOOL_CALLS][";
      calls.after = "]";
      calls.anywhere = true;
      break;
    case ToolForm::kLlama3Json:
      add_json_tags(calls, tools, "", "parameters", "");
      calls.separator = "; ";
      break;
    case ToolForm::kPythonic: {
      KeywordWriter writer;
      for (const ToolSpec* tool : tools)
        calls.tags.push_back(tag(tool->name + "(", writer.keywords(*tool), ")"));
      calls.separator = ", ";
      calls.before = "[";
      calls.after = "]";
      break;
    }
    case ToolForm::kFunctionTag:
      for (const ToolSpec* tool : tools) {
        ordered_json arguments = schema_format(arguments_schema(*tool));
        arguments["style"] = "qwen_xml";
        calls.tags.push_back(tag("<tool_call>\n<function=" + tool->name + ">\n",
                                 std::move(arguments), "\n</function>\n</tool_call>"));
      }
      calls.separator = "\n";
      calls.anywhere = true;
      break;
  }
  return calls;
}

/// At least one call, nothing else.
ordered_json only_calls(const CallTags& calls, bool parallel) {
  ordered_json list = {{"type", "tags_with_separator"},
                       {"tags", calls.tags},
                       {"separator", calls.separator},
                       {"at_least_one", true},
                       {"stop_after_first", !parallel}};
  if (calls.before.empty()) return list;
  return in_order({constant(calls.before), std::move(list), constant(calls.after)});
}

/// Free text, in which what begins like a call must be one.
ordered_json text_or_calls(const CallTags& calls, bool parallel, const ChatForm& form,
                           bool may_think) {
  if (!calls.anywhere) {
    // A reply that begins with the calls' bracket is calls.
    const std::string_view first = calls.before.empty() ? "\\s*[^{\\s]" : "\\s*[^\\[\\s]";
    return one_of(
        {constant(""), in_order({regex(first), any_text()}), only_calls(calls, parallel)});
  }
  ordered_json tags = calls.tags;
  if (!calls.before.empty()) {
    // All calls share one begin, so the list of them is the tag's content.
    CallTags bare = calls;
    bare.before.clear();
    tags = ordered_json::array({tag(calls.before, only_calls(bare, parallel), calls.after)});
  }
  ordered_json format = {{"type", "triggered_tags"},
                         {"triggers", {call_triggers(form.tools).front()}},
                         {"tags", std::move(tags)},
                         {"at_least_one", false},
                         {"stop_after_first", !parallel}};
  if (may_think) format["excludes"] = {form.think_begin};
  return format;
}

ordered_json output_format(const OutputFormat& output) {
  switch (output.kind) {
    case OutputKind::kJsonSchema:
      return schema_format(output.schema);
    case OutputKind::kJsonObject:
      return schema_format({{"type", "object"}, {"additionalProperties", true}});
    case OutputKind::kRegex:
      return regex(output.pattern);
    case OutputKind::kGrammar:
      return {{"type", "grammar"}, {"grammar", output.pattern}};
    case OutputKind::kStructuralTag:
      return output.schema;
    case OutputKind::kChoice: {
      auto choices = ordered_json::array();
      for (const std::string& choice : output.choices)
        choices.push_back(constant(choice));
      return one_of(std::move(choices));
    }
    case OutputKind::kText:
      break;
  }
  return any_text();
}

/// `answer` behind what may stand before it.
ordered_json behind_thinking(const ordered_json& answer, const ChatForm& form,
                             ThinkingStart thinking) {
  if (thinking == ThinkingStart::kNone) return answer;
  const bool open = thinking == ThinkingStart::kOpen;
  ordered_json thought = tag(open ? "" : form.think_begin, any_text(), form.think_end);
  ordered_json with = in_order({std::move(thought), regex("\\s*"), answer});
  if (open) return with;
  return one_of({std::move(with), answer});
}

std::vector<const ToolSpec*> allowed_tools(const ToolUse& use) {
  std::vector<const ToolSpec*> tools;
  for (const ToolSpec& tool : use.specs) {
    const bool allowed = use.allowed.empty() || std::find(use.allowed.begin(), use.allowed.end(),
                                                          tool.name) != use.allowed.end();
    if (allowed) tools.push_back(&tool);
  }
  return tools;
}

}  // namespace

std::string grammar_document(const ReplyShape& shape, const ChatForm& form) {
  const bool has_output = shape.output != nullptr && shape.output->kind != OutputKind::kText;
  if (shape.tools == nullptr && !has_output) return "";
  ordered_json answer;
  if (shape.tools == nullptr) {
    answer = output_format(*shape.output);
  } else {
    const CallTags calls = call_tags(form.tools, allowed_tools(*shape.tools));
    if (shape.must_call)
      answer = only_calls(calls, shape.parallel);
    else if (has_output)
      answer = one_of({only_calls(calls, shape.parallel), output_format(*shape.output)});
    else
      answer =
          text_or_calls(calls, shape.parallel, form, shape.thinking == ThinkingStart::kMayBegin);
  }
  const ordered_json document = {{"type", "structural_tag"},
                                 {"format", behind_thinking(answer, form, shape.thinking)}};
  return dump_json(document);
}

}  // namespace thaw::coalescer
