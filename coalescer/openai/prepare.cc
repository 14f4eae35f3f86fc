#include <algorithm>
#include <string>
#include <utility>

#include "coalescer/openai/call.h"

namespace thaw::coalescer {
namespace {

constexpr std::uint32_t kDefaultCompletionTokens = 16;

/// The field that the prompt is in.
const char* prompt_field(ApiKind kind) {
  if (kind == ApiKind::kCompletions) return "prompt";
  return kind == ApiKind::kResponses ? "input" : "messages";
}

/// The field that says how long the reply may be.
std::string limit_field(ApiKind kind) {
  return kind == ApiKind::kResponses ? "`max_output_tokens`" : "`max_tokens`";
}

/// Begins as the API's own error does: clients tell it by its text. `least`: tokens that must fit
/// behind the prompt.
ApiError too_long(const ApiCall& call, std::size_t prompt_tokens, std::uint32_t least,
                  std::uint32_t max_model_len) {
  std::string message;
  if (call.kind == ApiKind::kMessages) {
    message = "prompt is too long: " + std::to_string(prompt_tokens) + " tokens > " +
              std::to_string(max_model_len - least) + " maximum";
    return invalid_field(prompt_field(call.kind), std::move(message), "context_length_exceeded");
  }
  message = "This model's maximum context length is " + std::to_string(max_model_len) +
            " tokens. However, the prompt has " + std::to_string(prompt_tokens);
  if (prompt_tokens < max_model_len && call.max_tokens) {
    message += " and " + limit_field(call.kind) + " asks for " + std::to_string(*call.max_tokens) +
               " more (" + std::to_string(prompt_tokens + *call.max_tokens) + " in all); at most " +
               std::to_string(max_model_len - prompt_tokens) + " fit";
  } else {
    message += "; it must leave room for at least one";
  }
  return invalid_field(prompt_field(call.kind), std::move(message), "context_length_exceeded");
}

ApiResult<std::vector<TokenId>> encode(const ApiPrompt& prompt, const TextCodec& codec,
                                       bool add_special) {
  if (const auto* chat = std::get_if<ChatPrompt>(&prompt)) {
    auto tokens = codec.encode_chat(*chat);
    if (!tokens) {
      ApiError error = to_api_error(tokens.error());
      error.param = "messages";
      return error;
    }
    return std::move(*tokens);
  }
  if (const auto* text = std::get_if<std::string>(&prompt))
    return codec.encode_text(*text, add_special);
  return std::get<std::vector<TokenId>>(prompt);
}

/// Keeps the end of a prompt that is longer than the call wants it.
void truncate(const ApiCall& call, std::uint32_t max_model_len, std::vector<TokenId>& tokens) {
  if (!call.truncate_prompt) return;
  const std::uint32_t reply = std::min(call.max_tokens.value_or(1), max_model_len - 1);
  const std::size_t most = *call.truncate_prompt < 0
                               ? max_model_len - reply
                               : static_cast<std::size_t>(*call.truncate_prompt);
  if (tokens.size() > most)
    tokens.erase(tokens.begin(), tokens.end() - static_cast<std::ptrdiff_t>(most));
}

/// What the worker is to say of the prompt's own tokens.
std::int32_t prompt_logprobs_of(const ApiCall& call) {
  const bool echoes = call.show.echo && call.logprobs && call.kind == ApiKind::kCompletions;
  return std::max(call.show.prompt_logprobs, echoes ? call.sampling.top_logprobs : -1);
}

}  // namespace

ApiResult<PreparedPrompt> fit_prompt(const ApiCall& call, std::vector<TokenId> tokens,
                                     std::uint32_t max_model_len) {
  PreparedPrompt result;
  result.tokens = std::move(tokens);
  const std::size_t length = result.tokens.size();
  if (length == 0) {
    return invalid_field(prompt_field(call.kind),
                         "the prompt is empty; it must have at least one token");
  }
  const std::size_t room = max_model_len > length ? max_model_len - length : 0;
  std::uint32_t least = call.cache.prewarm ? 0 : call.max_tokens.value_or(1);
  // Clients of that API need not know how long a prompt is: they get as much as fits.
  if (call.kind == ApiKind::kMessages) least = std::min(least, 1U);
  if (length > max_model_len || least > room) return too_long(call, length, least, max_model_len);
  if (call.cache.prewarm) return result;
  const std::size_t wanted = call.kind != ApiKind::kCompletions
                                 ? room
                                 : std::min<std::size_t>(room, kDefaultCompletionTokens);
  result.max_tokens = call.max_tokens.value_or(static_cast<std::uint32_t>(wanted));
  result.max_tokens = std::min(result.max_tokens, static_cast<std::uint32_t>(room));
  if (call.sampling.min_tokens > result.max_tokens) {
    return invalid_field("min_tokens", "`min_tokens` is " +
                                           std::to_string(call.sampling.min_tokens) +
                                           "; it must not exceed " + limit_field(call.kind) +
                                           ", here " + std::to_string(result.max_tokens));
  }
  return result;
}

ApiResult<std::vector<PreparedPrompt>> prepare_prompts(const ApiCall& call, const TextCodec& codec,
                                                       std::uint32_t max_model_len) {
  std::vector<PreparedPrompt> prepared;
  prepared.reserve(call.prompts.size());
  for (const ApiPrompt& prompt : call.prompts) {
    auto encoded = encode(prompt, codec, call.add_special);
    if (auto* error = std::get_if<ApiError>(&encoded)) return std::move(*error);
    auto& tokens = std::get<std::vector<TokenId>>(encoded);
    truncate(call, max_model_len, tokens);
    auto fitted = fit_prompt(call, std::move(tokens), max_model_len);
    if (auto* error = std::get_if<ApiError>(&fitted)) return std::move(*error);
    auto& ready = std::get<PreparedPrompt>(fitted);
    ready.kept_tokens =
        kept_tokens(call.cache, std::get_if<ChatPrompt>(&prompt), ready.tokens, codec);
    prepared.push_back(std::move(ready));
  }
  return prepared;
}

std::vector<GenerateRequest> make_requests(const ApiCall& call, std::vector<PreparedPrompt> prompts,
                                           const std::string& model, const std::string& tenant,
                                           std::uint64_t seed) {
  std::vector<GenerateRequest> requests;
  requests.reserve(prompts.size());
  for (PreparedPrompt& prompt : prompts) {
    GenerateRequest& request = requests.emplace_back();
    request.tenant = tenant;
    request.cache_salt = call.cache_salt;
    request.model = model;
    request.session = call.session_id;
    request.priority = call.priority;
    request.worker = call.worker;
    request.num_choices = call.num_choices;
    request.grammar = call.reply.grammar;
    request.sampling = call.sampling;
    request.sampling.max_tokens = prompt.max_tokens;
    // The best of several are found by their log-probabilities.
    if (call.num_returned > 0)
      request.sampling.top_logprobs = std::max(0, request.sampling.top_logprobs);
    request.prompt_logprobs = prompt_logprobs_of(call);
    request.sampling.seed = call.seed.value_or(seed + requests.size() - 1);
    request.prompt = std::move(prompt.tokens);
  }
  return requests;
}

}  // namespace thaw::coalescer
