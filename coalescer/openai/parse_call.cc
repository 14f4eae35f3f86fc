#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "coalescer/openai/call.h"
#include "coalescer/openai/json_fields.h"
#include "coalescer/openai/parse_messages.h"

namespace thaw::coalescer {
namespace {

using simdjson::dom::element;

constexpr std::int64_t kMaxInt64 = std::numeric_limits<std::int64_t>::max();
constexpr std::int64_t kMinInt64 = std::numeric_limits<std::int64_t>::min();
constexpr std::int64_t kMaxInt32 = std::numeric_limits<std::int32_t>::max();
constexpr std::size_t kMaxStops = 64;
constexpr std::size_t kMaxStopBytes = 1024;
constexpr std::size_t kMaxLogitBias = 1024;
constexpr std::int64_t kMaxTopLogprobs = 20;

void read_sampling(JsonFields& fields, const ParseLimits& limits, ApiCall& call) {
  SamplingParams& sampling = call.sampling;
  fields.read("temperature", sampling.temperature, 0, 2);
  fields.read("top_p", sampling.top_p, 0, 1);
  if (!fields.failed() && sampling.top_p <= 0) {
    fields.fail(invalid_field("top_p", "`top_p` is 0; it must be above 0 and at most 1"));
    return;
  }
  // vLLM's clients write -1 for "off", we keep 0.
  fields.read("top_k", sampling.top_k, -1, kMaxInt32);
  sampling.top_k = std::max(sampling.top_k, 0);
  fields.read("min_p", sampling.min_p, 0, 1);
  fields.read("repetition_penalty", sampling.repetition_penalty, 0.01, 10);
  fields.read("presence_penalty", sampling.presence_penalty, -2, 2);
  fields.read("frequency_penalty", sampling.frequency_penalty, -2, 2);
  fields.read("min_tokens", sampling.min_tokens, 0, kMaxInt32);
  fields.read("ignore_eos", sampling.ignore_eos);
  if (const auto seed = fields.integer("seed", kMinInt64, kMaxInt64))
    call.seed = static_cast<std::uint64_t>(*seed);
  if (const auto n = fields.integer("max_tokens", 1, kMaxInt32))
    call.max_tokens = static_cast<std::uint32_t>(*n);
  if (const auto n = fields.integer("max_completion_tokens", 1, kMaxInt32))
    call.max_tokens = static_cast<std::uint32_t>(*n);
  fields.read("n", call.num_choices, 1, limits.max_choices);

  if (const auto ids = fields.array("stop_token_ids")) {
    for (const element value : *ids) {
      const auto token = as_token_id(value, limits.vocab_size);
      if (!token) {
        fields.fail("stop_token_ids", value,
                    "a list of token ids below " + std::to_string(limits.vocab_size));
        return;
      }
      sampling.stop_token_ids.push_back(*token);
    }
  }
}

void read_stop(JsonFields& fields, ApiCall& call) {
  const auto value = fields.find("stop");
  if (!value || fields.failed()) return;
  const auto add = [&](element stop) {
    std::string_view text;
    if (stop.get(text) != simdjson::SUCCESS || text.empty() || text.size() > kMaxStopBytes) {
      return fields.fail(
          "stop", stop,
          "a string of 1 to " + std::to_string(kMaxStopBytes) + " bytes or a list of such strings");
    }
    call.stop.emplace_back(text);
  };
  simdjson::dom::array list;
  if (value->get(list) != simdjson::SUCCESS) return add(*value);
  if (list.size() > kMaxStops) {
    return fields.fail(invalid_field("stop", "`stop` has " + std::to_string(list.size()) +
                                                 " strings; at most " + std::to_string(kMaxStops) +
                                                 " are accepted"));
  }
  for (const element stop : list)
    add(stop);
}

void read_logit_bias(JsonFields& fields, const ParseLimits& limits, ApiCall& call) {
  const auto biases = fields.object("logit_bias");
  if (!biases || fields.failed()) return;
  for (const auto field : biases->raw()) {
    const std::string key(field.key);
    const std::string name = "logit_bias." + key;
    const bool digits =
        !key.empty() && key.size() < 10 && key.find_first_not_of("0123456789") == std::string::npos;
    if (!digits || std::stoi(key) >= limits.vocab_size) {
      return fields.fail(invalid_field(
          "logit_bias", "`logit_bias` has the key \"" + key.substr(0, 40) +
                            "\"; keys must be token ids from 0 to " +
                            std::to_string(limits.vocab_size - 1) + ", written as strings"));
    }
    double bias = 0;
    if (!field.value.is_number() || field.value.get(bias) != simdjson::SUCCESS ||
        !(bias >= -100 && bias <= 100)) {
      return fields.fail(name, field.value, "a number from -100 to 100");
    }
    call.sampling.logit_bias.emplace_back(std::stoi(key), static_cast<float>(bias));
    if (call.sampling.logit_bias.size() > kMaxLogitBias) {
      return fields.fail(invalid_field(
          "logit_bias",
          "`logit_bias` has more than " + std::to_string(kMaxLogitBias) + " entries"));
    }
  }
}

void read_logprobs(JsonFields& fields, ApiCall& call) {
  if (call.kind == ApiKind::kCompletions) {
    if (const auto best = fields.integer("logprobs", 0, kMaxTopLogprobs)) {
      call.logprobs = true;
      call.sampling.top_logprobs = static_cast<std::int32_t>(*best);
    }
    return;
  }
  fields.read("logprobs", call.logprobs);
  const auto best = fields.integer("top_logprobs", 0, kMaxTopLogprobs);
  if (best && *best > 0 && !call.logprobs) {
    return fields.fail(
        invalid_field("top_logprobs", "`top_logprobs` is " + std::to_string(*best) +
                                          " but `logprobs` is not true; set it to true as well"));
  }
  if (call.logprobs) call.sampling.top_logprobs = static_cast<std::int32_t>(best.value_or(0));
}

/// What is well known but not served: better an error than another meaning.
void refuse_unsupported(JsonFields& fields, const ApiCall& call) {
  if (const auto best_of = fields.integer("best_of", 1, kMaxInt32); best_of && *best_of > 1) {
    return fields.fail(unsupported_field(
        "best_of", "`best_of` is " + std::to_string(*best_of) + "; only 1 is supported, use `n`"));
  }
  bool flag = false;
  fields.read("echo", flag);
  if (flag) return fields.fail(unsupported_field("echo", "`echo` is not supported; leave it out"));
  if (fields.find("prompt_logprobs")) {
    return fields.fail(
        unsupported_field("prompt_logprobs", "`prompt_logprobs` is not supported; leave it out"));
  }
  std::string suffix;
  if (call.kind == ApiKind::kCompletions) fields.read("suffix", suffix);
  if (!suffix.empty()) {
    return fields.fail(unsupported_field("suffix", "`suffix` is not supported; leave it out"));
  }
  if (call.kind == ApiKind::kCompletions && fields.find("session_id")) {
    return fields.fail(unsupported_field(
        "session_id",
        "`session_id` goes with /v1/chat/completions; a plain prompt has no session"));
  }
  if (auto format = fields.object("response_format")) {
    std::string type = "text";
    format->read("type", type);
    if (format->failed()) return fields.fail_with(*format);
    if (type != "text") {
      fields.fail(unsupported_field("response_format.type",
                                    "`response_format.type` is \"" + type.substr(0, 40) +
                                        "\", which is not supported yet; only \"text\" is"));
    }
  }
}

void read_thaw(JsonFields& fields, ApiCall& call) {
  auto thaw = fields.object("thaw");
  if (!thaw) return;
  thaw->read("explain", call.explain);
  if (const auto worker = thaw->integer("worker", 0, kMaxInt32))
    call.worker = static_cast<std::uint32_t>(*worker);
  fields.fail_with(*thaw);
}

void read_delivery(JsonFields& fields, ApiCall& call) {
  fields.read("stream", call.stream);
  if (auto options = fields.object("stream_options")) {
    options->read("include_usage", call.include_usage);
    fields.fail_with(*options);
  }
  bool skip_special = true;
  fields.read("skip_special_tokens", skip_special);
  call.keep_special = !skip_special;
  fields.read("cache_salt", call.cache_salt);
  if (call.cache_salt.size() > kMaxSaltBytes) {
    return fields.fail(invalid_field(
        "cache_salt", "`cache_salt` has " + std::to_string(call.cache_salt.size()) +
                          " bytes; at most " + std::to_string(kMaxSaltBytes) + " are accepted"));
  }
  fields.read("priority", call.priority, -kMaxInt32, kMaxInt32);
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
  call.has_tools = fields.find("tools").has_value();
  call.has_template_kwargs = fields.find("chat_template_kwargs").has_value();
  if (const auto choice = fields.find("tool_choice")) {
    std::string_view word;
    call.hides_tools = choice->get(word) == simdjson::SUCCESS && word == "none";
  }
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
  if (limits.default_sampling != nullptr) call.sampling = *limits.default_sampling;
  read_sampling(fields, limits, call);
  read_stop(fields, call);
  read_logit_bias(fields, limits, call);
  read_logprobs(fields, call);
  read_delivery(fields, call);
  read_thaw(fields, call);
  refuse_unsupported(fields, call);
  if (!fields.failed()) {
    if (call.kind == ApiKind::kChat) {
      read_session(fields, call);
      ChatPrompt prompt;
      read_chat_prompt(fields, prompt, /*may_be_empty=*/!call.session_id.empty() && !call.replace);
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
                           &call.served->description.default_sampling};
  return read_call(fields, limits, std::move(call));
}

}  // namespace thaw::coalescer
