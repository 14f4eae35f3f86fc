#include "coalescer/openai/tools.h"

#include <algorithm>
#include <utility>

namespace thaw::coalescer {
namespace {

using nlohmann::ordered_json;
using simdjson::dom::element;

bool is_tool_name(std::string_view name) {
  const auto is_good = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           std::string_view("_-.:/").find(c) != std::string_view::npos;
  };
  return !name.empty() && name.size() <= kMaxToolNameBytes &&
         std::all_of(name.begin(), name.end(), is_good);
}

/// A function that takes nothing.
ordered_json no_parameters() {
  return {{"type", "object"}, {"properties", ordered_json::object()}};
}

/// Reads a function's `name`, `description`, `strict`, and the schema of its arguments.
std::optional<ToolSpec> read_function(JsonFields& function, std::string_view schema) {
  ToolSpec tool;
  if (!function.find("name")) {
    const std::string name = function.full_name("name");
    function.fail(invalid_field(name, "`" + name + "` is missing; it must be a string"));
  }
  function.read("name", tool.name);
  if (!function.failed() && !is_tool_name(tool.name)) {
    const std::string name = function.full_name("name");
    function.fail(invalid_field(name, "`" + name + "` is \"" + tool.name.substr(0, 40) +
                                          "\"; it must have 1 to " +
                                          std::to_string(kMaxToolNameBytes) +
                                          " letters, digits, `_`, `-`, `.`, `:` or `/`"));
  }
  function.read("description", tool.description);
  function.read("strict", tool.strict);
  tool.parameters = no_parameters();
  if (const auto parameters = function.object(schema)) {
    ordered_json given = to_ordered_json(parameters->raw());
    // `{}` says no more than a missing one.
    if (!given.empty()) tool.parameters = std::move(given);
  }
  if (function.failed()) return std::nullopt;
  return tool;
}

void add_tool(JsonFields& fields, std::string_view list, JsonFields& function, ToolUse& use,
              std::string_view schema = "parameters") {
  auto tool = read_function(function, schema);
  if (!tool) return fields.fail_with(function);
  if (use.specs.size() >= kMaxTools) {
    return fields.fail(
        invalid_field(std::string(list), "`" + std::string(list) + "` has more than " +
                                             std::to_string(kMaxTools) +
                                             " functions, the most that are accepted"));
  }
  if (find_tool(use.specs, tool->name) != nullptr) {
    const std::string name = function.full_name("name");
    return fields.fail(invalid_field(name, "`" + name + "` is \"" + tool->name +
                                               "\", as that of another one in `" +
                                               std::string(list) + "`; names must differ"));
  }
  use.specs.push_back(std::move(*tool));
}

ordered_json template_entry(const ToolSpec& tool) {
  ordered_json function;
  function["name"] = tool.name;
  if (!tool.description.empty()) function["description"] = tool.description;
  function["parameters"] = tool.parameters;
  return {{"type", "function"}, {"function", std::move(function)}};
}

/// The type that `tool` may have: what the client runs itself.
void check_type(JsonFields& tool, ToolShape shape) {
  const std::string right = shape == ToolShape::kDescribed ? "custom" : "function";
  std::string type = right;
  tool.read("type", type);
  if (tool.failed() || type == right) return;
  const std::string name = tool.full_name("type");
  tool.fail(unsupported_field(
      name, "`" + name + "` is \"" + type.substr(0, 40) + "\"; " +
                (shape == ToolShape::kDescribed
                     ? "only tools that the client runs and describes itself (`name`, "
                       "`description`, `input_schema`) are supported"
                     : "only \"function\" is supported")));
}

void require_member(JsonFields& tool, const char* member, const char* right) {
  if (tool.failed() || tool.find(member)) return;
  const std::string name = tool.full_name(member);
  tool.fail(invalid_field(name, "`" + name + "` is missing; it must be " + right));
}

/// A tool as chat templates take it.
ordered_json nested_tool(simdjson::dom::object tool) {
  auto function = ordered_json::object();
  for (const auto member : tool) {
    if (member.key != "type" && !member.value.is_null())
      append_member(function, member.key, to_ordered_json(member.value));
  }
  return {{"type", "function"}, {"function", std::move(function)}};
}

void read_function_list(JsonFields& fields, ToolUse& use, ordered_json& list) {
  const auto functions = fields.array("functions");
  if (!functions || functions->size() == 0) return;
  if (!use.specs.empty()) {
    return fields.fail(invalid_field(
        "functions", "`functions` and `tools` are both given; the first is the older name"));
  }
  use.legacy = true;
  use.parallel = false;
  for (const element value : *functions) {
    const std::string name = item_name("functions", use.specs.size());
    simdjson::dom::object object;
    if (value.get(object) != simdjson::SUCCESS) {
      return fields.fail(invalid_field(
          name, "`" + name + "` is " + json_type_name(value) + "; it must be an object"));
    }
    JsonFields function(object, name + ".");
    add_tool(fields, "functions", function, use);
    if (fields.failed()) return;
    list.push_back({{"type", "function"}, {"function", to_ordered_json(value)}});
  }
}

/// `{"type": "function", "function": {"name": ...}}`, or the name itself at `{"name": ...}`, which
/// is the usual form where `is_flat`.
std::string read_chosen_name(JsonFields& choice, bool is_flat) {
  std::string name;
  std::string type = "function";
  choice.read("type", type);
  if (type != "function") {
    const std::string param = choice.full_name("type");
    choice.fail(unsupported_field(param, "`" + param + "` is \"" + type.substr(0, 40) +
                                             "\"; only \"function\" is supported"));
  }
  if (auto function = choice.object("function")) {
    function->read("name", name);
    choice.fail_with(*function);
  } else {
    choice.read("name", name);
  }
  if (!choice.failed() && name.empty()) {
    const std::string param = choice.full_name(is_flat ? "name" : "function.name");
    choice.fail(invalid_field(param, "`" + param + "` is missing; it must be a tool's name"));
  }
  return name;
}

void read_allowed_tools(JsonFields& choice, ToolShape shape, ToolUse& use) {
  auto allowed = shape == ToolShape::kFlat ? std::optional(choice) : choice.object("allowed_tools");
  if (!allowed) {
    const std::string name = choice.full_name("allowed_tools");
    return choice.fail(invalid_field(name, "`" + name + "` is missing; it must be an object"));
  }
  std::string mode = "auto";
  allowed->read("mode", mode);
  if (!allowed->failed() && mode != "auto" && mode != "required") {
    const std::string name = allowed->full_name("mode");
    allowed->fail(invalid_field(name, "`" + name + "` is \"" + mode.substr(0, 40) +
                                          "\"; it must be \"auto\" or \"required\""));
  }
  use.mode = mode == "required" ? ToolMode::kRequired : ToolMode::kAuto;
  const auto tools = allowed->array("tools");
  if (!allowed->failed() && (!tools || tools->size() == 0)) {
    const std::string name = allowed->full_name("tools");
    allowed->fail(invalid_field(name, "`" + name + "` must be a list of at least one tool"));
  }
  if (allowed->failed() || !tools) return choice.fail_with(*allowed);
  for (const element value : *tools) {
    const std::string name = allowed->full_name(item_name("tools", use.allowed.size()));
    simdjson::dom::object object;
    if (value.get(object) != simdjson::SUCCESS) {
      return choice.fail(invalid_field(
          name, "`" + name + "` is " + json_type_name(value) + "; it must be an object"));
    }
    JsonFields tool(object, name + ".");
    use.allowed.push_back(read_chosen_name(tool, shape == ToolShape::kFlat));
    if (tool.failed()) return choice.fail_with(tool);
  }
}

void read_choice(JsonFields& fields, std::string_view field, ToolShape shape, ToolUse& use) {
  const auto value = fields.find(field);
  if (!value) return;
  const char* right = "\"auto\", \"none\", \"required\" or an object that names a function";
  std::string_view word;
  if (value->get(word) == simdjson::SUCCESS) {
    if (word == "auto") return;
    if (word == "none")
      use.mode = ToolMode::kNone;
    else if (word == "required" || word == "any")
      use.mode = ToolMode::kRequired;
    else
      fields.fail(field, *value, right);
    return;
  }
  simdjson::dom::object object;
  if (value->get(object) != simdjson::SUCCESS) return fields.fail(field, *value, right);
  JsonFields choice(object, std::string(field) + ".");
  std::string type = "function";
  choice.read("type", type);
  if (type == "allowed_tools") {
    read_allowed_tools(choice, shape, use);
  } else if (type == "function") {
    use.mode = ToolMode::kRequired;
    use.allowed.push_back(read_chosen_name(choice, shape == ToolShape::kFlat || use.legacy));
    // One function was named: one call of it.
    if (!use.parallel) use.parallel = false;
  } else {
    const std::string name = choice.full_name("type");
    choice.fail(
        unsupported_field(name, "`" + name + "` is \"" + type.substr(0, 40) +
                                    "\"; \"function\" and \"allowed_tools\" are supported"));
  }
  fields.fail_with(choice);
}

}  // namespace

void read_tool_list(JsonFields& fields, ToolShape shape, ToolUse& use, ordered_json& list) {
  const auto tools = fields.array("tools");
  if (!tools) return;
  for (const element value : *tools) {
    const std::string name = item_name("tools", use.specs.size());
    simdjson::dom::object object;
    if (value.get(object) != simdjson::SUCCESS) {
      return fields.fail(invalid_field(
          name, "`" + name + "` is " + json_type_name(value) + "; it must be an object"));
    }
    JsonFields tool(object, name + ".");
    check_type(tool, shape);
    if (shape == ToolShape::kNested) require_member(tool, "function", "an object with `name`");
    if (shape == ToolShape::kDescribed)
      require_member(tool, "input_schema", "the JSON schema of an object");
    auto nested = shape == ToolShape::kNested ? tool.object("function") : std::nullopt;
    if (tool.failed()) return fields.fail_with(tool);
    add_tool(fields, "tools", nested ? *nested : tool, use,
             shape == ToolShape::kDescribed ? "input_schema" : "parameters");
    if (fields.failed()) return;
    if (shape == ToolShape::kDescribed)
      list.push_back(template_entry(use.specs.back()));
    else
      list.push_back(nested ? to_ordered_json(value) : nested_tool(object));
  }
}

ToolUse read_tools(JsonFields& fields, ordered_json& shown, bool may_be_known, ToolShape shape) {
  ToolUse use;
  bool parallel = true;
  fields.read("parallel_tool_calls", parallel);
  if (fields.find("parallel_tool_calls")) use.parallel = parallel;
  auto list = ordered_json::array();
  if (!fields.failed()) read_tool_list(fields, shape, use, list);
  if (!fields.failed() && shape == ToolShape::kNested) read_function_list(fields, use, list);
  const char* choice = use.legacy ? "function_call" : "tool_choice";
  if (!fields.failed()) read_choice(fields, choice, shape, use);
  // The other name has no say then; it is as right or wrong all the same.
  if (!fields.failed() && shape == ToolShape::kNested) {
    ToolUse unheard;
    unheard.legacy = !use.legacy;
    read_choice(fields, use.legacy ? "tool_choice" : "function_call", shape, unheard);
  }
  if (fields.failed()) return use;
  if (use.specs.empty()) {
    if (use.mode == ToolMode::kRequired && !may_be_known) {
      fields.fail(invalid_field(
          choice, "`" + std::string(choice) + "` asks for a call, but there are no `tools`"));
    }
    return use;
  }
  for (const std::string& name : use.allowed) {
    if (find_tool(use.specs, name) != nullptr) continue;
    fields.fail(invalid_field(choice, "`" + std::string(choice) + "` names the function \"" +
                                          name.substr(0, 40) + "\", which is not in `tools`"));
    return use;
  }
  if (use.mode != ToolMode::kNone) shown = std::move(list);
  return use;
}

std::vector<ToolSpec> tools_of_list(std::string_view list_json) {
  ToolUse use;
  JsonBody body;
  const std::string text = R"({"tools":)" + std::string(list_json) + "}";
  if (body.parse(text, kMaxJsonDepth + 1)) return {};
  JsonFields fields(body.root());
  auto ignored = ordered_json::array();
  read_tool_list(fields, ToolShape::kNested, use, ignored);
  return std::move(use.specs);
}

const ToolSpec* find_tool(const std::vector<ToolSpec>& tools, std::string_view name) {
  const auto found = std::find_if(tools.begin(), tools.end(),
                                  [&](const ToolSpec& tool) { return tool.name == name; });
  return found == tools.end() ? nullptr : &*found;
}

}  // namespace thaw::coalescer
