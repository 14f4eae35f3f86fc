#include "coalescer/openai/responses_call.h"

#include <algorithm>
#include <array>
#include <memory>
#include <utility>

#include "coalescer/openai/json_fields.h"
#include "coalescer/openai/json_text.h"
#include "coalescer/openai/parse_sampling.h"
#include "coalescer/openai/query.h"
#include "coalescer/openai/reasoning.h"

namespace thaw::coalescer {
namespace {

using nlohmann::ordered_json;
using simdjson::dom::element;

constexpr std::size_t kMaxMetadata = 16;
constexpr std::size_t kMaxMetadataKey = 64;
constexpr std::size_t kMaxMetadataValue = 512;
constexpr std::uint32_t kMaxPage = 100;
constexpr std::string_view kLogprobs = "message.output_text.logprobs";
/// What `include` may name; all but the first speak of tools that are not here, or of thinking that
/// is never hidden.
constexpr std::array kIncludes = {kLogprobs,
                                  std::string_view("reasoning.encrypted_content"),
                                  std::string_view("file_search_call.results"),
                                  std::string_view("web_search_call.results"),
                                  std::string_view("web_search_call.action.sources"),
                                  std::string_view("message.input_image.image_url"),
                                  std::string_view("computer_call_output.output.image_url"),
                                  std::string_view("code_interpreter_call.outputs")};

/// What is well known but not served, or belongs elsewhere.
void refuse_unsupported(JsonFields& fields) {
  constexpr std::array kRefused = {
      std::pair("conversation", "is not supported; `previous_response_id` goes on with a response"),
      std::pair("prompt", "is not supported: no prompt templates are kept here; leave it out"),
      std::pair("context_management", "is not supported; leave it out, or see `truncation`"),
      std::pair("moderation", "is not supported; leave it out"),
      std::pair("messages", "belongs to /v1/chat/completions; here it is `input`"),
      std::pair("session_id", "goes with /v1/chat/completions; here it is `previous_response_id`"),
      std::pair("truncate_prompt_tokens", "is not supported here; see `truncation`"),
      std::pair("prompt_logprobs", "is not supported here; /v1/chat/completions has it"),
      std::pair("chat_template", "is not supported; leave it out"),
      std::pair("logits_processors", "is not supported; leave it out"),
  };
  for (const auto& [name, why] : kRefused) {
    if (!fields.find(name)) continue;
    return fields.fail(unsupported_field(name, "`" + std::string(name) + "` " + why));
  }
}

/// One of several words; anything else is an error.
std::string read_word(JsonFields& fields, std::string_view name, std::string standard,
                      std::initializer_list<std::string_view> words) {
  std::string word = std::move(standard);
  fields.read(name, word);
  if (fields.failed() || std::ranges::find(words, word) != words.end()) return word;
  std::string right;
  for (const std::string_view one : words)
    right += (right.empty() ? "\"" : ", \"") + std::string(one) + "\"";
  const std::string full = fields.full_name(name);
  fields.fail(invalid_field(
      full, "`" + full + "` is \"" + word.substr(0, 40) + "\"; it must be one of " + right));
  return word;
}

void read_include(JsonFields& fields, ApiCall& call) {
  const auto list = fields.array("include");
  if (!list || fields.failed()) return;
  for (const element value : *list) {
    std::string_view word;
    if (value.get(word) != simdjson::SUCCESS ||
        std::ranges::find(kIncludes, word) == kIncludes.end()) {
      return fields.fail("include", value,
                         "a list of words such as \"message.output_text.logprobs\"");
    }
    call.logprobs = call.logprobs || word == kLogprobs;
  }
}

void read_logprobs(JsonFields& fields, ApiCall& call) {
  read_include(fields, call);
  const auto best = fields.integer("top_logprobs", 0, kMaxTopLogprobs);
  call.logprobs = call.logprobs || best.value_or(0) > 0;
  if (call.logprobs) call.sampling.top_logprobs = static_cast<std::int32_t>(best.value_or(0));
}

ordered_json read_metadata(JsonFields& fields) {
  ordered_json metadata = ordered_json::object();
  const auto given = fields.object("metadata");
  if (!given || fields.failed()) return metadata;
  for (const auto field : given->raw()) {
    std::string_view value;
    if (field.value.get(value) != simdjson::SUCCESS || value.size() > kMaxMetadataValue ||
        field.key.size() > kMaxMetadataKey || metadata.size() >= kMaxMetadata) {
      fields.fail(invalid_field(
          "metadata", "`metadata` is wrong at \"" + std::string(field.key.substr(0, 40)) +
                          "\"; it may have " + std::to_string(kMaxMetadata) +
                          " strings of at most " + std::to_string(kMaxMetadataValue) +
                          " bytes, with keys of at most " + std::to_string(kMaxMetadataKey)));
      return metadata;
    }
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
    shown["verbosity"] = read_word(*text, "verbosity", "medium", {"low", "medium", "high"});
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
    if (!reasoning->find(name)) continue;
    shown["summary"] = read_word(*reasoning, name, "", {"auto", "concise", "detailed"});
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
  echo["max_tool_calls"] = number(fields.integer("max_tool_calls", 1, kMaxInt32));
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
  request.truncates = read_word(fields, "truncation", "disabled", {"auto", "disabled"}) == "auto";
  if (fields.failed()) return;
  if (request.input.empty() && request.previous_id.empty()) {
    fields.fail(invalid_field("input", std::string("`input` is ") +
                                           (fields.find("input") ? "empty" : "missing") +
                                           "; it must be a string or a list of items"));
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
  refuse_unsupported(fields);
  read_sampling_fields(fields, limits, call);
  if (const auto most = fields.integer("max_output_tokens", 1, kMaxInt32))
    call.max_tokens = static_cast<std::uint32_t>(*most);
  if (!fields.failed() && call.num_choices != 1) {
    fields.fail(unsupported_field(
        "n", "`n` is " + std::to_string(call.num_choices) +
                 "; a response has one output, several of one beginning go by /v1/forks"));
  }
  read_delivery_fields(fields, call);
  read_answer_fields(fields, call);
  call.show.echo = false;
  read_logprobs(fields, call);
  call.cache = read_cache_fields(fields);
  call.cache.breakpoints.clear();  // of messages, which are not there
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
  ResponseView view;
  while (const auto parameter = take_parameter(query)) {
    if (parameter->name == "stream") {
      const auto stream = true_or_false(*parameter);
      if (const auto* error = std::get_if<ApiError>(&stream)) return *error;
      view.stream = std::get<bool>(stream);
    } else if (parameter->name == "starting_after") {
      const auto number = whole_number(*parameter, 0);
      if (!number) return wrong_parameter(*parameter, "the `sequence_number` of an event");
      view.starting_after = *number;
    }
  }
  return view;
}

ApiResult<ItemsPage> parse_items_page(std::string_view query) {
  ItemsPage page;
  while (const auto parameter = take_parameter(query)) {
    if (parameter->name == "after") {
      page.after = parameter->value;
    } else if (parameter->name == "order") {
      if (parameter->value != "asc" && parameter->value != "desc")
        return wrong_parameter(*parameter, "asc or desc");
      page.newest_first = parameter->value == "desc";
    } else if (parameter->name == "limit") {
      const auto limit = page_limit(*parameter, kMaxPage);
      if (const auto* error = std::get_if<ApiError>(&limit)) return *error;
      page.limit = std::get<std::uint32_t>(limit);
    }
  }
  return page;
}

}  // namespace thaw::coalescer
