#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "coalescer/openai/reply_piece.h"
#include "engine/base/generate.h"

namespace thaw::coalescer {

/// What every piece of one answer repeats.
struct CompletionLabel {
  std::string id;  ///< "chatcmpl-...", "cmpl-..."
  std::int64_t created = 0;  ///< seconds since the epoch
  std::string model;
  std::string system_fingerprint;
  std::optional<std::size_t> branch = std::nullopt;  ///< of POST /v1/forks
  std::string branch_label = {};
};

/// What a session's turn did with the session.
struct SessionUsage {
  std::string id;
  bool appended = false;  ///< behind the ids as they were, else rendered anew
  std::uint64_t common_tokens = 0;  ///< of the prompt and the session's line
};

/// Where and how long a whole answer was worked on: `thaw_metadata`.
struct AnswerMetadata {
  double latency_seconds = 0;  ///< since the request was there
  std::uint32_t slot = 0;  ///< of its model
};

struct CompletionUsage {
  std::uint64_t prompt_tokens = 0;
  std::uint64_t cached_tokens = 0;
  std::uint64_t kept_tokens = 0;  ///< of the prompts, whose KV is kept (CacheFields)
  std::uint64_t completion_tokens = 0;
  std::uint64_t reasoning_tokens = 0;  ///< of these, the model's thinking
  std::optional<SessionUsage> session;
};

/// A token with its log-probability, as text.
struct LogprobEntry {
  struct Candidate {
    std::string bytes;  ///< may be a part of a character
    float logprob = 0.0F;
    TokenId token = 0;
  };
  Candidate chosen;
  std::vector<Candidate> best;
  std::size_t text_offset = 0;  ///< characters of the choice's text before it
  std::size_t given_offset = 0;  ///< of the text given out before it: less while some is held back
  bool is_known = true;  ///< false: of a prompt's first token nothing is expected
};

/// How a choice ended. `reason` is "stop", "length", or "tool_calls" where a stop ended a reply
/// with calls, all of them whole; stop_reason the token or string that ended it.
struct ChoiceEnd {
  const char* reason = "stop";
  std::optional<TokenId> stop_token;
  std::optional<std::string> stop_string;
};

/// One step of one choice in a stream.
struct Delta {
  std::size_t choice = 0;
  bool role = false;  ///< the opening chunk of a chat choice
  ReplyPieces pieces;
  std::vector<LogprobEntry> logprobs;
  std::optional<ChoiceEnd> end;
  std::vector<TokenId> token_ids;  ///< that it adds, where they are shown
  std::string prompt_fields;  ///< PromptReport::fields(), in the first one
  std::optional<CompletionUsage> usage;  ///< up to here, where chunks show it
};

/// A whole choice of an unstreamed answer.
struct WholeChoice {
  ReplyPieces pieces;
  std::vector<LogprobEntry> logprobs;
  ChoiceEnd end;
  std::vector<TokenId> token_ids;  ///< where they are shown
  std::string prompt_fields;  ///< PromptReport::fields()
};

}  // namespace thaw::coalescer
