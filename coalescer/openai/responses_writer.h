#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "coalescer/openai/answer_writer.h"
#include "coalescer/openai/responses_call.h"

namespace thaw::coalescer {

/// Writes the answer to POST /v1/responses: the response object, or its events. The output that it
/// has seen so far stays readable, for the server's store. Not thread-safe.
class ResponsesWriter final : public AnswerWriter {
 public:
  /// REQUIRES: call.responses.
  ResponsesWriter(const ApiCall& call, const CompletionLabel& label);

  /// Nothing: a response has no such field.
  void set_system_fingerprint(const std::string& fingerprint) override;
  void append_start(std::string& out, std::uint64_t prompt_tokens) override;
  void append_delta(std::string& out, const Delta& delta) override;
  void append_end(std::string& out, const CompletionUsage& usage,
                  const std::string& explanation) override;
  /// Nothing: the last event says that it is the last.
  void append_done(std::string& out) override;
  void append_error(std::string& out, const ApiError& error) override;
  std::string body(const std::vector<WholeChoice>& choices, const CompletionUsage& usage,
                   const std::string& explanation) override;

  /// The response as it stands, JSON.
  std::string object() const;
  /// Ids and JSON of the output.
  std::vector<std::pair<std::string, std::string>> items() const;
  /// "queued", "in_progress", "completed", "incomplete", "failed" or "cancelled".
  std::string_view status() const { return status_; }
  /// Events that were written; the next one has this number.
  std::int64_t num_events() const { return sequence_; }
  /// The answer ends here, by the client's wish or by an error that no stream shows.
  void cancel();
  void fail(const ApiError& error);

 private:
  struct Item {
    ItemKind kind = ItemKind::kMessage;
    std::string id;
    std::string text;  // of a call its arguments
    std::string call_id;
    std::string name;
    std::vector<LogprobEntry> logprobs;
    const char* status = "in_progress";
  };

  void append_piece(std::string* out, const ReplyPiece& piece, std::vector<LogprobEntry>& logprobs);
  void open_item(std::string* out, ItemKind kind, const ReplyPiece* call);
  void close_item(std::string* out, const char* status);
  /// All of the output is there.
  void end_output(std::string* out, const ChoiceEnd& end);
  void add_text(std::string* out, std::string_view text, std::vector<LogprobEntry> logprobs);

  /// `event: TYPE\ndata: {"type":TYPE,"sequence_number":N`; what follows is the caller's.
  void begin_event(std::string& out, std::string_view type);
  /// The same with the place of the open item.
  void begin_item_event(std::string& out, std::string_view type, bool has_part);
  void append_response_event(std::string& out, std::string_view type);
  void append_item(std::string& out, const Item& item, bool is_new = false) const;
  void append_part(std::string& out, const Item& item, bool is_new) const;
  void append_logprobs(std::string& out, std::span<const LogprobEntry> entries) const;

  std::shared_ptr<const ResponsesRequest> request_;
  CompletionLabel label_;
  AnswerOptions show_;
  bool logprobs_;
  bool prewarms_;
  std::string_view status_;
  std::int64_t sequence_ = 0;
  std::int64_t completed_at_ = 0;
  std::vector<Item> items_;  // the last one may be open
  std::vector<LogprobEntry> waiting_;  // of tokens whose text is held back
  std::string prompt_fields_;
  std::vector<TokenId> token_ids_;
  std::string usage_;  // JSON; empty: not known yet
  std::string error_;  // the same
  std::string explanation_;
};

}  // namespace thaw::coalescer
