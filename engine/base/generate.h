#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "engine/base/error.h"
#include "engine/base/types.h"

namespace thaw {

/// How one choice is sampled. Validated by `validate()` in engine/sampling before it is used.
struct SamplingParams {
  float temperature = 1.0F;  ///< 0 is greedy (argmax, ties by lower id)
  std::int32_t top_k = 0;  ///< 0 is off. Fan et al., arXiv:1805.04833
  float top_p = 1.0F;  ///< in (0, 1]. Holtzman et al., arXiv:1904.09751
  float min_p = 0.0F;  ///< in [0, 1]. Nguyen et al., arXiv:2407.01082
  float repetition_penalty =
      1.0F;  ///< > 0, over prompt and output. Keskar et al., arXiv:1909.05858
  float presence_penalty = 0.0F;  ///< in [-2, 2], over output since generation_start
  float frequency_penalty = 0.0F;  ///< in [-2, 2], over output since generation_start
  std::vector<std::pair<TokenId, float>> logit_bias;  ///< bias in [-100, 100]
  std::vector<TokenId> allowed_token_ids;  ///< no other is sampled; empty: any may be
  std::vector<std::vector<TokenId>> bad_words;  ///< never generated in whole; none is empty
  /// Generated tokens per choice. 0: the prompt is computed, each choice ends with kLength.
  std::uint32_t max_tokens = 16;
  std::uint32_t min_tokens = 0;  ///< no stop token may be sampled before that many
  std::vector<TokenId> stop_token_ids;  ///< besides the model's EOS ids
  bool ignore_eos = false;
  std::uint64_t seed = 0;  ///< resolved: a request without one got a random one
  std::int32_t top_logprobs = -1;  ///< -1 none, 0 the chosen token's only, n also the n best
};

/// One choice of a request that goes on after a worker's death: what was already sent of it.
struct ResumedChoice {
  std::uint32_t choice_index = 0;
  std::vector<TokenId> generated;
};

/// One call, as it travels from the server to a worker. Text is gone: everything is token ids.
/// KV-relevant fields (tenant, salt, model, adapter) decide the cache root; sampling stays per
/// request.
struct GenerateRequest {
  RequestId id = 0;
  std::string tenant;  ///< owner of the API key; empty without keys
  std::string cache_salt;  ///< nothing is shared across salts
  std::string model;
  std::string adapter;
  std::string session;  ///< empty: none
  RequestId parent = 0;  ///< 0: none; the request this one forks from
  std::uint32_t cut_position = 0;  ///< tokens of the parent that are kept
  std::int32_t priority = 0;  ///< lower runs first
  std::optional<std::chrono::milliseconds> deadline;  ///< time left when the request was sent
  std::string trace_id;
  bool pin = false;  ///< keep the prompt's KV from eviction until `ttl` is over
  std::chrono::seconds ttl{0};
  std::string grammar;  ///< mask source; empty: none
  std::optional<std::uint32_t> worker;  ///< run on this worker only (tests, operators)
  std::vector<TokenId> prompt;  ///< at least one token
  std::uint32_t num_choices = 1;
  SamplingParams sampling;
  /// Log-probabilities of the prompt's own tokens: -1 none, 0 the token's, n also the n best. All
  /// of the prompt is computed for them, whatever is cached.
  std::int32_t prompt_logprobs = -1;
  /// Positions whose log-probabilities were sent before a worker's death.
  std::uint32_t prompt_scored = 0;
  /// Not empty: only these choices run, each going on after its `generated` tokens.
  std::vector<ResumedChoice> resumed;
};

enum class FinishReason : std::uint8_t { kStop, kLength, kCancelled };

struct TokenLogprob {
  TokenId token = 0;
  float logprob = 0.0F;
};

/// The request is queued on a worker: it was not refused.
struct AdmittedEvent {
  RequestId request = 0;
  std::uint32_t worker = 0;
};

/// One sampled token. `index` counts from 0 since generation_start of that choice.
struct TokenEvent {
  RequestId request = 0;
  std::uint32_t choice = 0;
  std::uint32_t index = 0;
  TokenId token = 0;
  float logprob = 0.0F;  ///< only where top_logprobs >= 0
  std::vector<TokenLogprob> top_logprobs;  ///< best first
};

/// What the model expected of one prompt token, before it saw it.
struct PromptLogprob {
  float logprob = 0.0F;
  std::uint32_t rank = 0;  ///< 1: no token was likelier, ties by lower id
  std::vector<TokenLogprob> best;  ///< best first
};

/// Log-probabilities of the prompt tokens from `first` on. These events come in order, from token 1
/// (of the first token nothing is expected) to the last, and before any TokenEvent.
struct PromptLogprobsEvent {
  RequestId request = 0;
  std::uint32_t first = 1;
  std::vector<PromptLogprob> tokens;
};

/// A choice has ended. A stop token is not sent as a TokenEvent; it is named here.
struct FinishedEvent {
  RequestId request = 0;
  std::uint32_t choice = 0;
  FinishReason reason = FinishReason::kStop;
  std::optional<TokenId> stop_token;
};

/// What a request cost. prompt_tokens = cached_tokens + the prompt tokens computed for it.
struct Usage {
  std::uint32_t prompt_tokens = 0;
  std::uint32_t cached_tokens = 0;  ///< prompt tokens not prefilled for this request
  std::uint32_t generated_tokens = 0;  ///< over all choices, stop tokens included
};

/// Every choice has finished; the last event of a request that was served.
struct CompletedEvent {
  RequestId request = 0;
  Usage usage;
};

/// The last event of a request that failed.
struct FailedEvent {
  RequestId request = 0;
  Error error;
};

/// Exactly one CompletedEvent or FailedEvent ends a request.
using GenerateEvent = std::variant<AdmittedEvent, TokenEvent, FinishedEvent, CompletedEvent,
                                   FailedEvent, PromptLogprobsEvent>;

/// The request that `event` belongs to.
inline RequestId event_request(const GenerateEvent& event) {
  return std::visit([](const auto& concrete) { return concrete.request; }, event);
}

}  // namespace thaw
