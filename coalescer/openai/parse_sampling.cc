#include "coalescer/openai/parse_sampling.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

namespace thaw::coalescer {
namespace {

using simdjson::dom::element;

constexpr std::int64_t kMinInt64 = std::numeric_limits<std::int64_t>::min();
constexpr std::size_t kMaxStops = 64;
constexpr std::size_t kMaxStopBytes = 1024;
constexpr std::size_t kMaxBadWords = 1024;
constexpr std::size_t kMaxLogitBias = 1024;

void read_token_list(JsonFields& fields, const char* name, int vocab_size,
                     std::vector<TokenId>& target) {
  const auto ids = fields.array(name);
  if (!ids) return;
  for (const element value : *ids) {
    const auto token = as_token_id(value, vocab_size);
    if (!token)
      return fields.fail(name, value, "a list of token ids below " + std::to_string(vocab_size));
    target.push_back(*token);
  }
}

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
  // A completion may be there for its prompt alone, a message of Anthropic's API too.
  const bool may_be_empty = call.kind == ApiKind::kCompletions || call.kind == ApiKind::kMessages;
  const std::int64_t least = may_be_empty ? 0 : 1;
  if (const auto n = fields.integer("max_tokens", least, kMaxInt32))
    call.max_tokens = static_cast<std::uint32_t>(*n);
  if (const auto n = fields.integer("max_completion_tokens", least, kMaxInt32))
    call.max_tokens = static_cast<std::uint32_t>(*n);
  fields.read("n", call.num_choices, 1, limits.max_choices);
  read_token_list(fields, "stop_token_ids", limits.vocab_size, sampling.stop_token_ids);
  read_token_list(fields, "allowed_token_ids", limits.vocab_size, sampling.allowed_token_ids);
  if (!fields.failed() && fields.find("allowed_token_ids") && sampling.allowed_token_ids.empty()) {
    fields.fail(invalid_field("allowed_token_ids",
                              "`allowed_token_ids` is empty; it must hold at least one token id"));
  }
}

/// More replies than are shown: those with the best mean log-probability are.
void read_best_of(JsonFields& fields, const ParseLimits& limits, ApiCall& call) {
  const auto best_of = fields.integer("best_of", 1, limits.max_choices);
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

/// A word is not generated at the start of a text nor behind a space.
void read_bad_words(JsonFields& fields, const ParseLimits& limits, ApiCall& call) {
  const auto words = fields.array("bad_words");
  if (!words || fields.failed()) return;
  if (words->size() > kMaxBadWords) {
    return fields.fail(invalid_field(
        "bad_words", "`bad_words` has " + std::to_string(words->size()) + " strings; at most " +
                         std::to_string(kMaxBadWords) + " are accepted"));
  }
  if (limits.codec == nullptr) {
    return fields.fail(
        unsupported_field("bad_words", "`bad_words` is not supported here; leave it out"));
  }
  for (const element value : *words) {
    std::string_view text;
    if (value.get(text) != simdjson::SUCCESS || text.empty() || text.size() > kMaxStopBytes) {
      return fields.fail("bad_words", value,
                         "a list of strings of 1 to " + std::to_string(kMaxStopBytes) + " bytes");
    }
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

}  // namespace

void read_sampling_fields(JsonFields& fields, const ParseLimits& limits, ApiCall& call) {
  read_sampling(fields, limits, call);
  read_best_of(fields, limits, call);
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
  fields.read("prompt_logprobs", show.prompt_logprobs, 0, kMaxTopLogprobs);
  if (show.prompt_logprobs >= 0 && call.stream) {
    fields.fail(unsupported_field(
        "prompt_logprobs", "`prompt_logprobs` is " + std::to_string(show.prompt_logprobs) +
                               " in a stream; set `stream` to false, or use `echo` with `logprobs` "
                               "of /v1/completions"));
  }
}

void read_prompt_fields(JsonFields& fields, ApiCall& call) {
  call.truncate_prompt = fields.integer("truncate_prompt_tokens", -1, kMaxInt32);
  if (call.truncate_prompt == 0) {
    fields.fail(invalid_field("truncate_prompt_tokens",
                              "`truncate_prompt_tokens` is 0; it must be -1 (what fits) or the "
                              "number of tokens to keep"));
  }
  if (call.kind == ApiKind::kCompletions) fields.read("add_special_tokens", call.add_special);
}

}  // namespace thaw::coalescer
