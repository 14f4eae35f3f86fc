#include "coalescer/openai/responses_call.h"

#include <array>
#include <memory>
#include <utility>

#include "coalescer/openai/json_fields.h"
#include "coalescer/openai/json_text.h"
#include "coalescer/openai/parse_sampling.h"
#include "coalescer/openai/query.h"
#include "coalescer/openai/reasoning.h"
#include "coalescer/openai/shapes.h"

namespace thaw::coalescer {
namespace {

using nlohmann::ordered_json;
using simdjson::dom::element;

constexpr std::size_t kMaxMetadataKey = 64;

void read_include(JsonFields& fields, ApiCall& call) {
  const auto list = fields.array("include");
  if (!list || fields.failed()) return;
  for (const element value : *list) {
    std::string_view word;
    if (value.get(word) == simdjson::SUCCESS && word == kIncludeLogprobs) call.logprobs = true;
  }
}

void read_response_logprobs(JsonFields& fields, ApiCall& call) {
  read_include(fields, call);
  const auto best = fields.integer("top_logprobs");
  call.logprobs = call.logprobs || best.value_or(0) > 0;
  if (call.logprobs) call.sampling.top_logprobs = static_cast<std::int32_t>(best.value_or(0));
}

ordered_json read_metadata(JsonFields& fields) {
  ordered_json metadata = ordered_json::object();
  const auto given = fields.object("metadata");
  if (!given || fields.failed()) return metadata;
  for (const auto field : given->raw()) {
    if (field.key.size() > kMaxMetadataKey) {
      fields.fail(invalid_field(
          "metadata", "`metadata` has the key \"" + std::string(field.key.substr(0, 40)) +
                          "...\"; keys may have " + std::to_string(kMaxMetadataKey) + " bytes"));
      return metadata;
    }
    std::string_view value;
    if (field.value.get(value) != simdjson::SUCCESS) continue;
    metadata[std::string(field.key)] = value;
  }
  return metadata;
}

/// `name` as it came; `standard` where it was left out.
ordered_json given_or(const JsonFields& fields, std::string_view name, ordered_json standard) {
  const auto value = fields.find(name);
  return value ? to_ordered_json(*value) : std::move(standard);
}

/// The tools as answers show them, every member of a function there.
ordered_json shown_tools(const JsonFields& fields) {
  ordered_json tools = given_or(fields, "tools", ordered_json::array());
  for (ordered_json& tool : tools) {
    for (const auto& [name, standard] : {std::pair<const char*, ordered_json>("type", "function"),
                                         {"description", nullptr},
                                         {"parameters", nullptr},
                                         {"strict", true}}) {
      if (!tool.contains(name) || tool[name].is_null()) tool[name] = standard;
    }
  }
  return tools;
}

ordered_json shown_text(JsonFields& fields) {
  ordered_json shown = {{"format", {{"type", "text"}}}, {"verbosity", "medium"}};
  if (auto text = fields.object("text")) {
    std::string verbosity = "medium";
    text->read("verbosity", verbosity);
    shown["verbosity"] = std::move(verbosity);
    if (const auto format = text->find("format")) shown["format"] = to_ordered_json(*format);
    fields.fail_with(*text);
  }
  return shown;
}

/// `reasoning` as answers show it; its effort becomes a variable of the template.
ordered_json read_reasoning(JsonFields& fields, ordered_json& template_kwargs) {
  ordered_json shown = {{"effort", nullptr}, {"summary", nullptr}};
  auto reasoning = fields.object("reasoning");
  if (!reasoning) return shown;
  read_reasoning_effort(*reasoning, template_kwargs, "effort");
  std::string effort;
  reasoning->read("effort", effort);
  if (!effort.empty()) shown["effort"] = effort;
  // What an open model thinks is given as it is; nothing here sums it up.
  for (const char* name : {"generate_summary", "summary"}) {  // the first is the older name
    std::string summary;
    reasoning->read(name, summary);
    if (!summary.empty()) shown["summary"] = std::move(summary);
  }
  fields.fail_with(*reasoning);
  return shown;
}

/// What the answer repeats. The fields were read, so that those that are there are right.
ordered_json echo_of(JsonFields& fields, const ApiCall& call, const ResponsesRequest& request,
                     ordered_json reasoning) {
  const auto number = [](const auto& value) {
    return value ? ordered_json(*value) : ordered_json(nullptr);
  };
  // As the client wrote it: the nearest float reads like a mistake.
  const auto real = [&](const char* name, float value) {
    std::string text;
    append_json_float(text, value);
    return given_or(fields, name, ordered_json::parse(text));
  };
  ordered_json echo;
  echo["instructions"] =
      request.instructions ? ordered_json(*request.instructions) : ordered_json(nullptr);
  echo["max_output_tokens"] = number(call.max_tokens);
  echo["max_tool_calls"] = number(fields.integer("max_tool_calls"));
  echo["previous_response_id"] =
      request.previous_id.empty() ? ordered_json(nullptr) : ordered_json(request.previous_id);
  echo["store"] = request.store;
  echo["temperature"] = real("temperature", call.sampling.temperature);
  echo["top_p"] = real("top_p", call.sampling.top_p);
  echo["top_logprobs"] = call.logprobs ? call.sampling.top_logprobs : 0;
  echo["parallel_tool_calls"] = call.tools.parallel.value_or(true);
  echo["tool_choice"] = given_or(fields, "tool_choice", "auto");
  echo["tools"] = shown_tools(fields);
  echo["text"] = shown_text(fields);
  echo["reasoning"] = std::move(reasoning);
  echo["truncation"] = request.truncates ? "auto" : "disabled";
  echo["metadata"] = read_metadata(fields);
  echo["service_tier"] = "default";
  for (const char* name :
       {"prompt_cache_key", "prompt_cache_retention", "safety_identifier", "user"}) {
    std::string text;
    fields.read(name, text);
    echo[name] = text.empty() ? ordered_json(nullptr) : ordered_json(std::move(text));
  }
  return echo;
}

void read_request(JsonFields& fields, ResponsesRequest& request) {
  request.input = read_input(fields);
  std::string instructions;
  fields.read("instructions", instructions);
  if (!instructions.empty()) request.instructions = std::move(instructions);
  fields.read("previous_response_id", request.previous_id);
  fields.read("store", request.store);
  fields.read("background", request.background);
  std::string truncation;
  fields.read("truncation", truncation);
  request.truncates = truncation == "auto";
  if (fields.failed()) return;
  if (request.input.empty() && request.previous_id.empty()) {
    fields.fail(invalid_field("input", "`input` is empty; it must be a string or a list of items"));
  }
  if (request.background && !request.store) {
    fields.fail(invalid_field("background",
                              "`background` is true but `store` is false; the answer is read from "
                              "the store"));
  }
}

}  // namespace

ApiResult<ApiCall> read_responses(JsonFields& fields, const ParseLimits& limits, ApiCall call) {
  if (limits.default_sampling != nullptr) call.sampling = *limits.default_sampling;
  const auto request = std::make_shared<ResponsesRequest>();
  read_sampling_fields(fields, limits, call);
  if (const auto most = fields.integer("max_output_tokens"))
    call.max_tokens = static_cast<std::uint32_t>(*most);
  read_delivery_fields(fields, call);
  read_answer_fields(fields, call);
  call.show.echo = false;
  read_response_logprobs(fields, call);
  call.cache = read_cache_fields(fields);
  read_thaw_fields(fields, call);
  call.output = read_text_format(fields);
  read_request(fields, *request);
  if (auto error = fields.error()) return std::move(*error);

  std::size_t num_breakpoints = 0;
  for (const ResponsesItem& item : request->input)
    num_breakpoints += item.breakpoints.size();
  count_breakpoints(fields, "input", num_breakpoints, call.cache);
  ChatPrompt prompt;
  const std::optional<bool> eager = call.tools.eager;
  call.tools = read_tools(fields, prompt.tools, /*may_be_known=*/false, ToolShape::kFlat);
  call.tools.eager = eager;
  call.has_tools = true;
  call.hides_tools = call.tools.mode == ToolMode::kNone;
  if (const auto kwargs = fields.object("chat_template_kwargs"))
    prompt.template_kwargs = to_ordered_json(kwargs->raw());
  ordered_json reasoning = read_reasoning(fields, prompt.template_kwargs);
  fields.read("include_reasoning", call.show.reasoning);
  if (auto error = fields.error()) return std::move(*error);

  const std::string echo = dump_json(echo_of(fields, call, *request, std::move(reasoning)));
  if (auto error = fields.error()) return std::move(*error);
  request->echo = echo.substr(1, echo.size() - 2);
  call.prompts.emplace_back(std::move(prompt));
  call.responses = request;
  return call;
}

ApiResult<ResponseView> parse_response_view(std::string_view query) {
  std::array<std::optional<std::string>, 2> values;
  if (auto error = read_query(kResponseViewQuery, OtherParameters::kIgnored, query, values))
    return std::move(*error);
  ResponseView view;
  view.stream = values[0] == "true";
  view.starting_after = whole_or(values[1], view.starting_after);
  return view;
}

ApiResult<ItemsPage> parse_items_page(std::string_view query) {
  std::array<std::optional<std::string>, 3> values;
  if (auto error = read_query(kItemsPageQuery, OtherParameters::kIgnored, query, values))
    return std::move(*error);
  ItemsPage page;
  page.limit = static_cast<std::uint32_t>(whole_or(values[0], page.limit));
  page.newest_first = values[1] != "asc";
  page.after = values[2].value_or("");
  return page;
}

}  // namespace thaw::coalescer
