#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "coalescer/openai/answer_writer.h"

namespace thaw::coalescer {

/// Answers of POST /v1/messages: content blocks in the order of the reply, and events in a stream.
/// Source: platform.claude.com/docs/en/api/messages and .../build-with-claude/streaming
class MessagesWriter final : public AnswerWriter {
 public:
  MessagesWriter(const ApiCall& call, const CompletionLabel& label);

  void set_system_fingerprint(const std::string& fingerprint) override;
  /// `message_start`. All of the prompt counts as input until `message_delta` knows better.
  void append_start(std::string& out, std::uint64_t prompt_tokens) override;
  void append_delta(std::string& out, const Delta& delta) override;
  /// `message_delta` with the usage of the whole call; the explanation is its `thaw`.
  void append_end(std::string& out, const CompletionUsage& usage,
                  const std::string& explanation) override;
  /// `message_stop`
  void append_done(std::string& out) override;
  void append_error(std::string& out, const ApiError& error) override;
  std::string body(const std::vector<WholeChoice>& choices, const CompletionUsage& usage,
                   const std::string& explanation) override;

 private:
  /// Everything before the content.
  std::string message_head() const;
  void append_stop(std::string& out, const ChoiceEnd& end, const CompletionUsage& usage) const;
  void append_usage(std::string& out, const CompletionUsage& usage) const;
  void append_piece_events(std::string& out, const ReplyPiece& piece);
  /// `fields`: of the block's type and content.
  void open_block(std::string& out, PieceKind kind, std::string_view fields);
  void append_block_delta(std::string& out, std::string_view type, std::string_view field,
                          std::string_view text) const;
  void close_block(std::string& out);

  CompletionLabel label_;
  std::optional<std::uint32_t> max_tokens_;
  bool marks_hour_;  // what is kept is kept for an hour or more
  std::optional<PieceKind> open_;  // the block that is written: thinking, text or a call
  std::size_t num_blocks_ = 0;  // ended
  ChoiceEnd end_;
};

}  // namespace thaw::coalescer
