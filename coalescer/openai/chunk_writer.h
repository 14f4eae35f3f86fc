#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "coalescer/openai/call.h"
#include "coalescer/openai/reply_piece.h"

namespace thaw::coalescer {

/// What every piece of one answer repeats.
struct CompletionLabel {
  std::string id;  ///< "chatcmpl-..." or "cmpl-..."
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

struct CompletionUsage {
  std::uint64_t prompt_tokens = 0;
  std::uint64_t cached_tokens = 0;
  std::uint64_t completion_tokens = 0;
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
  bool is_known = true;  ///< false: of a prompt's first token nothing is expected
};

/// How a choice ended. `reason` is "stop", "length", or "tool_calls" where a stop ended a reply
/// with calls; stop_reason the token or string that ended it.
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

/// Writes the JSON of answers. Frames of a stream are written straight into one string: this is the
/// only JSON that is made for every token.
class ChunkWriter {
 public:
  ChunkWriter(ApiKind kind, const CompletionLabel& label, bool logprobs, bool null_usage,
              const AnswerOptions& show = {});

  /// One SSE frame. `null_usage` from the constructor adds `"usage":null`, as OpenAI does where
  /// the usage chunk follows.
  void append_delta(std::string& out, const Delta& delta) const;
  void append_usage(std::string& out, const CompletionUsage& usage,
                    const std::string& explanation) const;
  /// A chunk without choices that holds only the explanation.
  void append_explanation(std::string& out, const std::string& explanation) const;

  /// A choice of an unstreamed answer. `prompt_fields`: of its prompt; a chat has them elsewhere.
  void append_choice(std::string& out, std::size_t index, const ReplyPieces& pieces,
                     const std::vector<LogprobEntry>& logprobs, const ChoiceEnd& end,
                     std::span<const TokenId> token_ids = {},
                     std::string_view prompt_fields = {}) const;
  /// Everything before the choices of an unstreamed answer; ends with `"choices":[`.
  std::string body_head() const { return body_head_; }
  static void append_usage_object(std::string& out, const CompletionUsage& usage);

 private:
  void append_logprobs(std::string& out, const std::vector<LogprobEntry>& entries) const;

  ApiKind kind_;
  bool logprobs_;
  bool null_usage_;
  AnswerOptions show_;
  std::string frame_head_;
  std::string body_head_;
};

/// A JSON list.
void append_token_ids(std::string& out, std::span<const TokenId> tokens);

/// One SSE frame with an error object.
std::string error_frame(const ApiError& error);

inline constexpr std::string_view kDoneFrame = "data: [DONE]\n\n";

}  // namespace thaw::coalescer
