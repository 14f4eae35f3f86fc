#include <algorithm>
#include <string>
#include <utility>

#include "coalescer/openai/call.h"
#include "coalescer/openai/json_fields.h"
#include "coalescer/openai/messages_call.h"
#include "coalescer/openai/parse_messages.h"
#include "coalescer/openai/parse_sampling.h"
#include "coalescer/openai/responses_call.h"
#include "coalescer/openai/shapes.h"

namespace thaw::coalescer {
namespace {

using simdjson::dom::element;

const Shape& shape_of(ApiKind kind) {
  switch (kind) {
    case ApiKind::kChat:
      break;
    case ApiKind::kCompletions:
      return kCompletionsShape;
    case ApiKind::kResponses:
      return kResponsesShape;
    case ApiKind::kMessages:
      return kMessagesShape;
  }
  return kChatShape;
}

/// Fields that only mean something to a session.
void read_session(JsonFields& fields, ApiCall& call) {
  fields.read("session_id", call.session_id);
  fields.read("append", call.append);
  fields.read("replace", call.replace);
  if (fields.failed()) return;
  const auto wrong = [&](const std::string& name, std::string message) {
    fields.fail(invalid_field(name, std::move(message)));
  };
  if (call.session_id.empty()) {
    for (const auto& [name, given] : {std::pair("append", call.append), {"replace", call.replace}})
      if (given) wrong(name, "`" + std::string(name) + "` is true but `session_id` is missing");
    return;
  }
  if (call.append && call.replace) {
    return wrong("replace",
                 "`append` and `replace` are both true; messages are either written behind the "
                 "session's tokens or stand for the whole conversation");
  }
  if (call.num_choices != 1) {
    return wrong("n", "`n` is " + std::to_string(call.num_choices) +
                          " in a session's turn; it must be 1, fork the session for more");
  }
  if (call.cache.prewarm) {
    return wrong("prompt_cache_options.prewarm",
                 "`prompt_cache_options.prewarm` is true in a session's turn, which is a reply; a "
                 "session's KV is computed when it is made");
  }
  if (call.truncate_prompt) {
    return wrong("truncate_prompt_tokens",
                 "`truncate_prompt_tokens` does not go with a session, whose beginning would be "
                 "lost; leave it out");
  }
  call.has_tools = fields.find("tools").has_value() || fields.find("functions").has_value();
  call.has_template_kwargs = fields.find("chat_template_kwargs").has_value() ||
                             fields.find("reasoning_effort").has_value();
}

void read_text_prompts(JsonFields& fields, const ParseLimits& limits, ApiCall& call) {
  const auto value = fields.find("prompt");
  if (fields.failed()) return;
  if (!value) {
    return fields.fail(invalid_field(
        "prompt",
        "`prompt` is missing; it must be a string, a list of strings, a list of token "
        "ids or a list of such lists"));
  }
  std::string_view text;
  if (value->get(text) == simdjson::SUCCESS) {
    call.prompts.emplace_back(std::string(text));
    return;
  }
  simdjson::dom::array list;
  if (value->get(list) != simdjson::SUCCESS || list.size() == 0) {
    return fields.fail("prompt", *value,
                       "a string, a list of strings, a list of token ids or a list of such lists; "
                       "not empty");
  }
  if ((*list.begin()).is_number()) {
    auto tokens = token_list(list, "prompt", limits.vocab_size);
    if (auto* error = std::get_if<ApiError>(&tokens)) return fields.fail(std::move(*error));
    call.prompts.emplace_back(std::move(std::get<std::vector<TokenId>>(tokens)));
    return;
  }
  for (const element item : list) {
    const std::string name = "prompt[" + std::to_string(call.prompts.size()) + "]";
    simdjson::dom::array ids;
    if (item.get(text) == simdjson::SUCCESS) {
      call.prompts.emplace_back(std::string(text));
    } else if (item.get(ids) == simdjson::SUCCESS) {
      auto tokens = token_list(ids, name, limits.vocab_size);
      if (auto* error = std::get_if<ApiError>(&tokens)) return fields.fail(std::move(*error));
      call.prompts.emplace_back(std::move(std::get<std::vector<TokenId>>(tokens)));
    } else {
      return fields.fail(invalid_field(name, "`" + name + "` is " + json_type_name(item) +
                                                 "; it must be a string or a list of token ids"));
    }
    if (call.prompts.size() * call.num_choices > limits.max_choices) {
      return fields.fail(invalid_field(
          "prompt", "`prompt` has more prompts than are accepted in one call: at most " +
                        std::to_string(limits.max_choices) + " choices in all"));
    }
  }
}

/// `call.model` has been read.
ApiResult<ApiCall> read_call(JsonFields& fields, const ParseLimits& limits, ApiCall call) {
  const ShapeLimits bounds{limits.max_choices, limits.vocab_size};
  if (auto error = check_shape(shape_of(call.kind), fields.raw(), bounds)) return std::move(*error);
  if (call.kind == ApiKind::kResponses) return read_responses(fields, limits, std::move(call));
  if (limits.default_sampling != nullptr) call.sampling = *limits.default_sampling;
  read_sampling_fields(fields, limits, call);
  read_delivery_fields(fields, call);
  read_answer_fields(fields, call);
  read_prompt_fields(fields, call);
  call.cache = read_cache_fields(fields);
  read_thaw_fields(fields, call);
  call.output = read_output_format(fields);
  if (!fields.failed()) {
    if (call.kind == ApiKind::kMessages) {
      read_session(fields, call);
      read_messages_call(fields, call);
    } else if (call.kind == ApiKind::kChat) {
      read_session(fields, call);
      ChatPrompt prompt;
      const std::optional<bool> eager = call.tools.eager;
      call.tools = read_chat_prompt(fields, prompt,
                                    /*may_be_empty=*/!call.session_id.empty() && !call.replace,
                                    /*may_know_tools=*/!call.session_id.empty(), &call.cache);
      call.tools.eager = eager;
      call.hides_tools = call.tools.mode == ToolMode::kNone;
      call.show.legacy_functions = call.tools.legacy;
      fields.read("include_reasoning", call.show.reasoning);
      if (!call.session_id.empty() && prompt.continue_final_message) {
        fields.fail(invalid_field("continue_final_message",
                                  "`continue_final_message` is true in a session's turn; `append` "
                                  "without messages goes on with the session's last reply"));
      }
      if (!call.session_id.empty() && !prompt.add_generation_prompt) {
        fields.fail(
            invalid_field("add_generation_prompt",
                          "`add_generation_prompt` is false in a session's turn, which is a "
                          "reply; leave it out"));
      }
      call.prompts.emplace_back(std::move(prompt));
    } else {
      read_text_prompts(fields, limits, call);
    }
  }
  if (auto error = fields.error()) return std::move(*error);
  return call;
}

}  // namespace

void read_thaw_fields(JsonFields& fields, ApiCall& call) {
  auto thaw = fields.object("thaw");
  if (!thaw) return;
  thaw->read("explain", call.explain);
  if (const auto worker = thaw->integer("worker"))
    call.worker = static_cast<std::uint32_t>(*worker);
  std::string tool_auto;
  thaw->read("tool_auto", tool_auto);
  if (!tool_auto.empty()) call.tools.eager = tool_auto == "eager";
}

void read_delivery_fields(JsonFields& fields, ApiCall& call) {
  fields.read("stream", call.stream);
  if (auto options = fields.object("stream_options")) {
    options->read("include_usage", call.include_usage);
    options->read("continuous_usage_stats", call.show.usage_in_chunks);
  }
  bool skip_special = true;
  fields.read("skip_special_tokens", skip_special);
  call.keep_special = !skip_special;
  fields.read("cache_salt", call.cache_salt);
  fields.read("priority", call.priority);
}

ApiResult<ApiCall> parse_call(ApiKind kind, std::string_view body, const ParseLimits& limits) {
  JsonBody json;
  if (auto error = json.parse(body)) return std::move(*error);
  JsonFields fields(json.root());
  ApiCall call;
  call.kind = kind;
  fields.read("model", call.model);
  return read_call(fields, limits, std::move(call));
}

ApiResult<ApiCall> parse_call(ApiKind kind, std::string_view body, const ServedModels& models,
                              std::uint32_t max_choices) {
  JsonBody json;
  if (auto error = json.parse(body)) return std::move(*error);
  JsonFields fields(json.root());
  ApiCall call;
  call.kind = kind;
  fields.read("model", call.model);
  if (auto error = fields.error()) return std::move(*error);
  auto served = require_model(models, call.model);
  if (auto* error = std::get_if<ApiError>(&served)) return std::move(*error);
  call.served = std::move(std::get<ServedModelPtr>(served));
  const ParseLimits limits{max_choices, call.served->codec->vocab_size(),
                           &call.served->description.default_sampling, call.served->codec.get()};
  return read_call(fields, limits, std::move(call));
}

}  // namespace thaw::coalescer
