#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "coalescer/openai/answer_writer.h"

namespace thaw::coalescer {

/// Answers of /v1/chat/completions and /v1/completions.
class ChunkWriter final : public AnswerWriter {
 public:
  ChunkWriter(const ApiCall& call, const CompletionLabel& label);

  void set_system_fingerprint(const std::string& fingerprint) override;
  /// Nothing: a chat begins with its role chunks, which are deltas.
  void append_start(std::string& out, std::uint64_t prompt_tokens) override;
  /// `"usage":null` is there where the usage chunk follows, as OpenAI does it.
  void append_delta(std::string& out, const Delta& delta) override;
  void append_end(std::string& out, const CompletionUsage& usage,
                  const std::string& explanation) override;
  void append_done(std::string& out) override;
  void append_error(std::string& out, const ApiError& error) override;
  void set_metadata(const AnswerMetadata& metadata) override { metadata_ = metadata; }
  std::string body(const std::vector<WholeChoice>& choices, const CompletionUsage& usage,
                   const std::string& explanation) override;

  static void append_usage_object(std::string& out, const CompletionUsage& usage);
  /// `"session":{...}`
  static void append_session_usage(std::string& out, const SessionUsage& session,
                                   std::uint64_t cached_tokens);

 private:
  void make_heads();
  void append_choice(std::string& out, std::size_t index, const WholeChoice& choice) const;
  void append_logprobs(std::string& out, const std::vector<LogprobEntry>& entries) const;

  ApiKind kind_;
  CompletionLabel label_;
  bool logprobs_;
  bool include_usage_;
  AnswerOptions show_;
  std::optional<AnswerMetadata> metadata_;
  std::string frame_head_;
  std::string body_head_;
};

/// A JSON list: each token with its text, its bytes and the best others.
void append_logprob_list(std::string& out, std::span<const LogprobEntry> entries, bool as_ids);

/// A JSON list.
void append_token_ids(std::string& out, std::span<const TokenId> tokens);

/// One SSE frame with an error object.
std::string error_frame(const ApiError& error);

inline constexpr std::string_view kDoneFrame = "data: [DONE]\n\n";

}  // namespace thaw::coalescer
