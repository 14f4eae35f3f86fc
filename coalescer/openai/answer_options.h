#pragma once

#include <cstdint>

namespace thaw::coalescer {

/// What an answer shows besides the reply, with vLLM's names for it.
struct AnswerOptions {
  bool echo = false;  ///< the prompt stands before the reply; of a chat, an open last message
  bool stop_in_text = false;  ///< include_stop_str_in_output
  bool token_ids = false;  ///< return_token_ids
  bool tokens_as_ids = false;  ///< return_tokens_as_token_ids: "token_id:N" in log-probabilities
  bool usage_in_chunks = false;  ///< stream_options.continuous_usage_stats
  bool reasoning = true;  ///< include_reasoning: a model's thinking
  bool legacy_functions = false;  ///< calls as `function_call`, for who asked with `functions`
  std::int32_t prompt_logprobs = -1;  ///< -1: not asked for
};

}  // namespace thaw::coalescer
