#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "coalescer/openai/json_fields.h"

namespace thaw::coalescer {

/// One function that the model may call, whatever API it came by.
struct ToolSpec {
  std::string name;  ///< letters, digits, `_`, `-`, `.`, `:` and `/`
  std::string description;
  nlohmann::ordered_json parameters;  ///< JSON schema of the arguments, an object
  bool strict = false;  ///< accepted; calls follow the schema anyway
};

enum class ToolMode : std::uint8_t {
  kAuto,  ///< the model decides
  kNone,  ///< it sees no tools
  kRequired,  ///< the reply is at least one call
};

/// What a request says about tools.
struct ToolUse {
  std::vector<ToolSpec> specs;
  ToolMode mode = ToolMode::kAuto;
  std::vector<std::string> allowed;  ///< only these may be called; empty: all
  std::optional<bool> parallel;  ///< false: at most one call; not said: the model's habit
  bool legacy = false;  ///< asked with `functions`; the answer has `function_call`
  /// A reply to anything but a tool's result must be a call; not said: the server's default.
  std::optional<bool> eager;
};

/// Longest name of a tool.
inline constexpr std::size_t kMaxToolNameBytes = 128;
/// Most tools of one request.
inline constexpr std::size_t kMaxTools = 1024;

/// How a request writes a function.
enum class ToolShape : std::uint8_t {
  kNested,  ///< {"type": "function", "function": {"name": ...}}
  kFlat,  ///< {"type": "function", "name": ...}, as the Responses API does
  kDescribed,  ///< {"name": ..., "input_schema": ...}, as Anthropic's API does
};

/// Reads `tools`, `tool_choice`, `parallel_tool_calls`, and (nested) the older `functions` and
/// `function_call`. `shown` becomes the list for the chat template, as the client wrote it
/// (nested); it stays null where there are none or the model is not to see them. `may_be_known`: a
/// forced call may mean tools that the request does not repeat. Sets `fields`' error where
/// something is wrong.
ToolUse read_tools(JsonFields& fields, nlohmann::ordered_json& shown, bool may_be_known,
                   ToolShape shape = ToolShape::kNested);

/// Adds the functions of `tools` to `use` and, as chat templates take them, to `list`. Sets
/// `fields`' error where something is wrong.
void read_tool_list(JsonFields& fields, ToolShape shape, ToolUse& use,
                    nlohmann::ordered_json& list);

/// The tools of a list as chat templates take it. What is no tool is left out.
std::vector<ToolSpec> tools_of_list(std::string_view list_json);

/// The one of that name; null where there is none.
const ToolSpec* find_tool(const std::vector<ToolSpec>& tools, std::string_view name);

}  // namespace thaw::coalescer
