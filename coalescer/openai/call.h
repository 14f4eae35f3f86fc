#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "coalescer/openai/answer_options.h"
#include "coalescer/openai/api_error.h"
#include "coalescer/openai/cache_fields.h"
#include "coalescer/openai/reply_plan.h"
#include "coalescer/openai/response_format.h"
#include "coalescer/openai/served_models.h"
#include "coalescer/openai/text_codec.h"
#include "coalescer/openai/tools.h"
#include "engine/base/generate.h"

namespace thaw::coalescer {

struct ResponsesRequest;

enum class ApiKind : std::uint8_t { kChat, kCompletions, kResponses, kMessages };

/// A prompt as the client gave it.
using ApiPrompt = std::variant<ChatPrompt, std::string, std::vector<TokenId>>;

/// One body of /v1/chat/completions, /v1/completions or /v1/messages, validated, not tokenized yet.
struct ApiCall {
  ApiKind kind = ApiKind::kChat;
  std::string model;  ///< as asked for; empty where it was left out
  ServedModelPtr served;  ///< the one it means; null where the body was read without a table
  std::vector<ApiPrompt> prompts;  ///< one for chat
  std::uint32_t num_choices = 1;  ///< for each prompt
  std::uint32_t num_returned = 0;  ///< of these, the best are shown; 0: all of them
  std::optional<std::uint32_t> max_tokens;
  std::optional<std::uint64_t> seed;
  SamplingParams sampling;  ///< max_tokens and seed are not resolved here
  std::vector<std::string> stop;
  bool logprobs = false;
  bool keep_special = false;  ///< special tokens show in the text
  AnswerOptions show;
  CacheFields cache;
  std::optional<std::int64_t> truncate_prompt;  ///< tokens kept at its end; -1: as many as fit
  bool add_special = true;  ///< text prompts begin with BOS where the model has one
  bool stream = false;
  bool include_usage = false;
  bool explain = false;
  std::string cache_salt;
  std::int32_t priority = 0;
  std::optional<std::uint32_t> worker;
  std::string session_id;  ///< chat: goes on with this session; empty: none
  bool append = false;  ///< behind the session's ids as they are, else rendered anew
  bool replace = false;  ///< the messages are the whole conversation, else they are added
  bool has_tools = false;  ///< the request says what the tools are, even if none
  bool hides_tools = false;  ///< tool_choice "none"
  bool has_template_kwargs = false;
  ToolUse tools;
  OutputFormat output;
  ReplyPlan reply;  ///< made once the prompt is known
  std::shared_ptr<const ResponsesRequest> responses;  ///< of /v1/responses, else null
};

struct ParseLimits {
  std::uint32_t max_choices = 64;  ///< bound of n, and of n times the number of prompts
  int vocab_size = 0;  ///< token ids in requests are below
  const SamplingParams* default_sampling = nullptr;  ///< for what is left out; null: OpenAI's
  const TextCodec* codec = nullptr;  ///< of words that are given as text; null: none can be
};

/// Reads a body. Fields that are not known are ignored; a known one of a wrong type or out of range
/// is an error that names it. simdjson checks UTF-8 and nesting.
ApiResult<ApiCall> parse_call(ApiKind kind, std::string_view body, const ParseLimits& limits);
/// The same with the vocabulary and the defaults of the model that the body names. Errors: the 404
/// of a model that is not served.
ApiResult<ApiCall> parse_call(ApiKind kind, std::string_view body, const ServedModels& models,
                              std::uint32_t max_choices);

/// A prompt ready to run.
struct PreparedPrompt {
  std::vector<TokenId> tokens;
  std::uint32_t max_tokens = 0;
  std::uint32_t kept_tokens = 0;  ///< of the prompt, whose KV is to be kept (CacheFields)
};

/// Renders and tokenizes the prompts (slow for long ones) and checks them against the context.
ApiResult<std::vector<PreparedPrompt>> prepare_prompts(const ApiCall& call, const TextCodec& codec,
                                                       std::uint32_t max_model_len);

/// A prompt of `tokens` with the room that the context leaves. Errors as prepare_prompts.
ApiResult<PreparedPrompt> fit_prompt(const ApiCall& call, std::vector<TokenId> tokens,
                                     std::uint32_t max_model_len);

/// The requests of a call, one for each prompt, without ids. `seed` is used where the call has
/// none.
std::vector<GenerateRequest> make_requests(const ApiCall& call, std::vector<PreparedPrompt> prompts,
                                           const std::string& model, const std::string& tenant,
                                           std::uint64_t seed);

/// POST /tokenize and /detokenize, with vLLM's fields. Both give the response body.
ApiResult<std::string> tokenize(std::string_view body, const ServedModels& models);
ApiResult<std::string> detokenize(std::string_view body, const ServedModels& models);

}  // namespace thaw::coalescer
