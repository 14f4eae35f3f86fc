#include "coalescer/openai/parse_sampling.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

namespace thaw::coalescer {
namespace {

using simdjson::dom::element;

void read_token_list(JsonFields& fields, const char* name, int vocab_size,
                     std::vector<TokenId>& target) {
  const auto ids = fields.array(name);
  if (!ids) return;
  auto tokens = token_list(*ids, name, vocab_size);
  if (auto* error = std::get_if<ApiError>(&tokens)) return fields.fail(std::move(*error));
  target = std::move(std::get<std::vector<TokenId>>(tokens));
}

void read_sampling(JsonFields& fields, const ParseLimits& limits, ApiCall& call) {
  SamplingParams& sampling = call.sampling;
  fields.read("temperature", sampling.temperature);
  fields.read("top_p", sampling.top_p);
  // What is above 0 stays above it as a float.
  sampling.top_p = std::max(sampling.top_p, std::numeric_limits<float>::min());
  // vLLM's clients write -1 for "off", we keep 0.
  fields.read("top_k", sampling.top_k);
  sampling.top_k = std::max(sampling.top_k, 0);
  fields.read("min_p", sampling.min_p);
  fields.read("repetition_penalty", sampling.repetition_penalty);
  fields.read("presence_penalty", sampling.presence_penalty);
  fields.read("frequency_penalty", sampling.frequency_penalty);
  fields.read("min_tokens", sampling.min_tokens);
  fields.read("ignore_eos", sampling.ignore_eos);
  if (const auto seed = fields.integer("seed")) call.seed = static_cast<std::uint64_t>(*seed);
  if (const auto n = fields.integer("max_tokens")) call.max_tokens = static_cast<std::uint32_t>(*n);
  if (const auto n = fields.integer("max_completion_tokens"))
    call.max_tokens = static_cast<std::uint32_t>(*n);
  fields.read("n", call.num_choices);
  read_token_list(fields, "stop_token_ids", limits.vocab_size, sampling.stop_token_ids);
  read_token_list(fields, "allowed_token_ids", limits.vocab_size, sampling.allowed_token_ids);
}

/// More replies than are shown: those with the best mean log-probability are.
void read_best_of(JsonFields& fields, ApiCall& call) {
  const auto best_of = fields.integer("best_of");
  if (!best_of || *best_of == call.num_choices) return;
  const std::string value = "`best_of` is " + std::to_string(*best_of);
  if (call.kind != ApiKind::kCompletions && *best_of > 1) {
    return fields.fail(unsupported_field(
        "best_of", value + "; it goes with /v1/completions, a chat shows all of its `n` replies"));
  }
  if (*best_of < call.num_choices) {
    return fields.fail(invalid_field("best_of", value + " but `n` is " +
                                                    std::to_string(call.num_choices) +
                                                    "; it must be at least as many"));
  }
  bool stream = false;
  fields.read("stream", stream);
  if (stream) {
    return fields.fail(unsupported_field(
        "best_of", value + " in a stream; which replies are the best is known at their end only"));
  }
  call.num_returned = call.num_choices;
  call.num_choices = static_cast<std::uint32_t>(*best_of);
}

void read_stop(JsonFields& fields, ApiCall& call) {
  const auto value = fields.find("stop");
  if (!value || fields.failed()) return;
  std::string_view text;
  if (value->get(text) == simdjson::SUCCESS) {
    call.stop.emplace_back(text);
    return;
  }
  const auto list = fields.array("stop");
  if (!list) return;
  for (const element stop : *list)
    if (stop.get(text) == simdjson::SUCCESS) call.stop.emplace_back(text);
}

void read_logit_bias(JsonFields& fields, const ParseLimits& limits, ApiCall& call) {
  const auto biases = fields.object("logit_bias");
  if (!biases || fields.failed()) return;
  for (const auto field : biases->raw()) {
    const std::string key(field.key);
    const bool digits =
        !key.empty() && key.size() < 10 && key.find_first_not_of("0123456789") == std::string::npos;
    if (!digits || std::stoi(key) >= limits.vocab_size) {
      return fields.fail(invalid_field(
          "logit_bias", "`logit_bias` has the key \"" + key.substr(0, 40) +
                            "\"; keys must be token ids from 0 to " +
                            std::to_string(limits.vocab_size - 1) + ", written as strings"));
    }
    double bias = 0;
    if (field.value.get(bias) != simdjson::SUCCESS) continue;
    call.sampling.logit_bias.emplace_back(std::stoi(key), static_cast<float>(bias));
  }
}

/// A word is not generated at the start of a text nor behind a space.
void read_bad_words(JsonFields& fields, const ParseLimits& limits, ApiCall& call) {
  const auto words = fields.array("bad_words");
  if (!words || fields.failed()) return;
  if (limits.codec == nullptr) {
    return fields.fail(
        unsupported_field("bad_words", "`bad_words` is not supported here; leave it out"));
  }
  for (const element value : *words) {
    std::string_view text;
    if (value.get(text) != simdjson::SUCCESS) continue;
    const std::string_view bare = text.substr(std::min(text.find_first_not_of(' '), text.size()));
    std::vector<std::vector<TokenId>>& target = call.sampling.bad_words;
    for (const std::string& form : {std::string(bare), " " + std::string(bare)}) {
      auto tokens = limits.codec->encode_text(form, /*add_special=*/false);
      if (!tokens.empty() && std::ranges::find(target, tokens) == target.end())
        target.push_back(std::move(tokens));
    }
  }
}

void read_logprobs(JsonFields& fields, ApiCall& call) {
  if (call.kind == ApiKind::kResponses) return;  // asked for by `include` there
  if (call.kind == ApiKind::kCompletions) {
    if (const auto best = fields.integer("logprobs")) {
      call.logprobs = true;
      call.sampling.top_logprobs = static_cast<std::int32_t>(*best);
    }
    return;
  }
  fields.read("logprobs", call.logprobs);
  const auto best = fields.integer("top_logprobs");
  if (best && *best > 0 && !call.logprobs) {
    return fields.fail(
        invalid_field("top_logprobs", "`top_logprobs` is " + std::to_string(*best) +
                                          " but `logprobs` is not true; set it to true as well"));
  }
  if (call.logprobs) call.sampling.top_logprobs = static_cast<std::int32_t>(best.value_or(0));
}

}  // namespace

void read_sampling_fields(JsonFields& fields, const ParseLimits& limits, ApiCall& call) {
  read_sampling(fields, limits, call);
  read_best_of(fields, call);
  read_stop(fields, call);
  read_logit_bias(fields, limits, call);
  read_bad_words(fields, limits, call);
}

void read_answer_fields(JsonFields& fields, ApiCall& call) {
  read_logprobs(fields, call);
  AnswerOptions& show = call.show;
  fields.read("echo", show.echo);
  fields.read("include_stop_str_in_output", show.stop_in_text);
  fields.read("return_token_ids", show.token_ids);
  fields.read("return_tokens_as_token_ids", show.tokens_as_ids);
  fields.read("prompt_logprobs", show.prompt_logprobs);
  if (show.prompt_logprobs >= 0 && call.stream) {
    fields.fail(unsupported_field(
        "prompt_logprobs", "`prompt_logprobs` is " + std::to_string(show.prompt_logprobs) +
                               " in a stream; set `stream` to false, or use `echo` with `logprobs` "
                               "of /v1/completions"));
  }
}

void read_prompt_fields(JsonFields& fields, ApiCall& call) {
  call.truncate_prompt = fields.integer("truncate_prompt_tokens");
  if (call.kind == ApiKind::kCompletions) fields.read("add_special_tokens", call.add_special);
}

}  // namespace thaw::coalescer
