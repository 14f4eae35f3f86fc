#include <cmath>
#include <sstream>
#include <string>

#include "engine/sampling/sampler.h"

namespace thaw::sampling {
namespace {

template <typename T>
Error out_of_range(const std::string& field, T value, const std::string& range) {
  std::ostringstream text;
  text << field << " is " << value << "; it must be " << range;
  return make_error(Errc::kInvalidArgument, text.str());
}

bool within(float value, float low, float high) {
  return value >= low && value <= high;  // false for NaN
}

Result<void> check_token(const std::string& field, TokenId token, int vocab_size) {
  if (token >= 0 && token < vocab_size) return {};
  return out_of_range("a token id in " + field, token,
                      "at least 0 and below the vocabulary's " + std::to_string(vocab_size));
}

}  // namespace

Result<void> validate(const SamplingParams& params, int vocab_size) {
  if (!std::isfinite(params.temperature) || params.temperature < 0.0F)
    return out_of_range("temperature", params.temperature, "0 or greater");
  if (params.top_k < 0) return out_of_range("top_k", params.top_k, "0 (off) or greater");
  if (!(params.top_p > 0.0F) || params.top_p > 1.0F)
    return out_of_range("top_p", params.top_p, "above 0 and at most 1");
  if (!within(params.min_p, 0.0F, 1.0F))
    return out_of_range("min_p", params.min_p, "between 0 and 1");
  if (!std::isfinite(params.repetition_penalty) || params.repetition_penalty <= 0.0F)
    return out_of_range("repetition_penalty", params.repetition_penalty, "above 0");
  if (!within(params.presence_penalty, -2.0F, 2.0F))
    return out_of_range("presence_penalty", params.presence_penalty, "between -2 and 2");
  if (!within(params.frequency_penalty, -2.0F, 2.0F))
    return out_of_range("frequency_penalty", params.frequency_penalty, "between -2 and 2");
  for (const auto& [token, bias] : params.logit_bias) {
    if (auto checked = check_token("logit_bias", token, vocab_size); !checked) return checked;
    if (!within(bias, -100.0F, 100.0F))
      return out_of_range("logit_bias of token " + std::to_string(token), bias,
                          "between -100 and 100");
  }
  for (TokenId token : params.stop_token_ids) {
    if (auto checked = check_token("stop_token_ids", token, vocab_size); !checked) return checked;
  }
  for (TokenId token : params.allowed_token_ids) {
    if (auto checked = check_token("allowed_token_ids", token, vocab_size); !checked)
      return checked;
  }
  for (const auto& word : params.bad_words) {
    if (word.empty())
      return make_error(Errc::kInvalidArgument,
                        "bad_words holds an empty one; each must have at least one token");
    for (TokenId token : word)
      if (auto checked = check_token("bad_words", token, vocab_size); !checked) return checked;
  }
  if (params.min_tokens > params.max_tokens)
    return out_of_range("min_tokens", params.min_tokens,
                        "at most max_tokens, " + std::to_string(params.max_tokens));
  if (params.top_logprobs < -1 || params.top_logprobs > kMaxTopLogprobs)
    return out_of_range("top_logprobs", params.top_logprobs,
                        "between 0 and " + std::to_string(kMaxTopLogprobs));
  return {};
}

}  // namespace thaw::sampling
