#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "coalescer/openai/answer.h"
#include "coalescer/openai/call.h"
#include "coalescer/openai/text_codec.h"

namespace thaw::coalescer {

/// What an answer says of one prompt besides its size: its text, its ids, what the model expected
/// of its tokens. Not thread-safe.
class PromptReport {
 public:
  /// `index`: which of the call's prompts. `codec` must outlive this.
  PromptReport(const ApiCall& call, std::size_t index, const PreparedPrompt& prompt,
               const TextCodec* codec);

  std::size_t num_tokens() const { return num_tokens_; }
  void add(const PromptLogprobsEvent& event);

  /// True once, as soon as all that is shown of the prompt before the reply is known.
  bool take_ready();
  /// What stands before the reply; empty without echo.
  const std::string& text() const { return text_; }
  /// Of the tokens of text(); empty where they are not asked for.
  const std::vector<LogprobEntry>& logprobs() const { return entries_; }
  /// Fields for the answer, in JSON: `,"prompt_logprobs":[...],"prompt_token_ids":[...]`.
  std::string fields() const;

 private:
  void make_entries();
  void append_scores(std::string& out) const;

  const TextCodec* codec_;
  AnswerOptions show_;
  bool keep_special_;
  std::size_t num_tokens_;
  std::vector<TokenId> tokens_;  // where any are shown
  std::vector<PromptLogprob> scores_;  // of tokens_ but the first
  bool is_scored_ = false;  // they are asked for
  bool echoes_scores_ = false;
  std::int32_t num_best_ = 0;  // of the echo
  bool was_ready_ = false;
  std::string text_;
  std::vector<LogprobEntry> entries_;
};

}  // namespace thaw::coalescer
