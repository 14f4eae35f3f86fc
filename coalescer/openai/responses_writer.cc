#include "coalescer/openai/responses_writer.h"

#include <algorithm>
#include <utility>

#include "coalescer/core/unix_time.h"
#include "coalescer/openai/chunk_writer.h"
#include "coalescer/openai/json_text.h"

namespace thaw::coalescer {
namespace {

constexpr const char* kOpen = "in_progress";

std::string usage_json(const CompletionUsage& usage) {
  std::string out;
  const auto number = [&](const char* name, std::uint64_t value) {
    out += name;
    append_json_integer(out, static_cast<std::int64_t>(value));
  };
  number(R"({"input_tokens":)", usage.prompt_tokens);
  number(R"(,"input_tokens_details":{"cached_tokens":)", usage.cached_tokens);
  // What was computed is there for the next one.
  number(R"(,"cache_write_tokens":)",
         usage.prompt_tokens - std::min(usage.cached_tokens, usage.prompt_tokens));
  number(R"(},"output_tokens":)", usage.completion_tokens);
  number(R"(,"output_tokens_details":{"reasoning_tokens":)", usage.reasoning_tokens);
  number(R"(},"total_tokens":)", usage.prompt_tokens + usage.completion_tokens);
  return out + '}';
}

std::string error_json(const ApiError& error) {
  std::string out = R"({"code":)";
  const bool is_limit = error.status == 429;
  const bool is_request = error.status >= 400 && error.status < 500 && !is_limit;
  append_json_string(out, is_limit     ? "rate_limit_exceeded"
                          : is_request ? "invalid_prompt"
                                       : "server_error");
  out += R"(,"message":)";
  append_json_string(out, error.message);
  return out + '}';
}

const char* type_of(ItemKind kind) {
  if (kind == ItemKind::kReasoning) return "reasoning";
  return kind == ItemKind::kCall ? "function_call" : "message";
}

/// Pieces of a whole reply with the log-probabilities of their tokens: an entry's place in the text
/// tells which piece it belongs to. Tokens behind all text, such as those of a stop string, belong
/// to none, as in a stream.
std::vector<std::vector<LogprobEntry>> split_logprobs(const ReplyPieces& pieces,
                                                      const std::vector<LogprobEntry>& entries) {
  std::vector<std::vector<LogprobEntry>> parts(pieces.size());
  if (pieces.empty()) return parts;
  std::size_t piece = 0;
  std::size_t end = count_characters(pieces.front().text);
  for (const LogprobEntry& entry : entries) {
    while (entry.given_offset >= end && piece + 1 < pieces.size())
      end += count_characters(pieces[++piece].text);
    if (entry.given_offset >= end) break;
    parts[piece].push_back(entry);
  }
  return parts;
}

}  // namespace

ResponsesWriter::ResponsesWriter(const ApiCall& call, const CompletionLabel& label)
    : request_(call.responses),
      label_(label),
      show_(call.show),
      logprobs_(call.logprobs),
      prewarms_(call.cache.prewarm),
      status_(call.responses->background ? "queued" : kOpen) {}

void ResponsesWriter::set_system_fingerprint(const std::string& /*fingerprint*/) {}

void ResponsesWriter::append_start(std::string& out, std::uint64_t /*prompt_tokens*/) {
  append_response_event(out, "response.created");
  if (request_->background) append_response_event(out, "response.queued");
  status_ = kOpen;
  append_response_event(out, "response.in_progress");
}

void ResponsesWriter::append_delta(std::string& out, const Delta& delta) {
  if (prompt_fields_.empty()) prompt_fields_ = delta.prompt_fields;
  token_ids_.insert(token_ids_.end(), delta.token_ids.begin(), delta.token_ids.end());
  waiting_.insert(waiting_.end(), delta.logprobs.begin(), delta.logprobs.end());
  const bool has_text = std::ranges::any_of(
      delta.pieces, [](const ReplyPiece& piece) { return piece.kind == PieceKind::kContent; });
  // Tokens of calls and of thinking have none in this API.
  if (!delta.pieces.empty() && !has_text) waiting_.clear();
  for (const ReplyPiece& piece : delta.pieces)
    append_piece(&out, piece, waiting_);
  if (delta.end) end_output(&out, *delta.end);
}

void ResponsesWriter::append_end(std::string& out, const CompletionUsage& usage,
                                 const std::string& explanation) {
  usage_ = usage_json(usage);
  explanation_ = explanation;
  append_response_event(out,
                        status_ == "incomplete" ? "response.incomplete" : "response.completed");
}

void ResponsesWriter::append_done(std::string& /*out*/) {}

void ResponsesWriter::append_error(std::string& out, const ApiError& error) {
  // A background response may fail before it began.
  if (sequence_ == 0) append_start(out, 0);
  fail(error);
  begin_event(out, "error");
  out += R"(,"code":)";
  append_json_string(out, error.code.empty() ? error.type : error.code);
  out += R"(,"message":)";
  append_json_string(out, error.message);
  out += R"(,"param":)";
  append_json_string_or_null(out, error.param);
  out += "}\n\n";
  append_response_event(out, "response.failed");
}

std::string ResponsesWriter::body(const std::vector<WholeChoice>& choices,
                                  const CompletionUsage& usage, const std::string& explanation) {
  const WholeChoice& choice = choices.front();
  auto logprobs = split_logprobs(choice.pieces, choice.logprobs);
  for (std::size_t i = 0; i < choice.pieces.size(); ++i)
    append_piece(nullptr, choice.pieces[i], logprobs[i]);
  prompt_fields_ = choice.prompt_fields;
  token_ids_ = choice.token_ids;
  end_output(nullptr, choice.end);
  usage_ = usage_json(usage);
  explanation_ = explanation;
  return object();
}

void ResponsesWriter::append_piece(std::string* out, const ReplyPiece& piece,
                                   std::vector<LogprobEntry>& logprobs) {
  const bool has_open = !items_.empty() && items_.back().status == std::string_view(kOpen);
  const auto goes_on = [&](ItemKind kind) { return has_open && items_.back().kind == kind; };
  switch (piece.kind) {
    case PieceKind::kReasoning:
      if (!goes_on(ItemKind::kReasoning)) open_item(out, ItemKind::kReasoning, nullptr);
      add_text(out, piece.text, {});
      break;
    case PieceKind::kContent:
      if (!goes_on(ItemKind::kMessage)) open_item(out, ItemKind::kMessage, nullptr);
      add_text(out, piece.text, std::exchange(logprobs, {}));
      break;
    case PieceKind::kCallStart:
      open_item(out, ItemKind::kCall, &piece);
      break;
    case PieceKind::kArguments:
      if (goes_on(ItemKind::kCall)) add_text(out, piece.text, {});
      break;
    case PieceKind::kCallEnd:
      if (goes_on(ItemKind::kCall)) close_item(out, "completed");
      break;
  }
}

void ResponsesWriter::open_item(std::string* out, ItemKind kind, const ReplyPiece* call) {
  close_item(out, "completed");
  Item item;
  item.kind = kind;
  item.id = item_id(kind, label_.id, 'o', items_.size());
  if (call != nullptr) {
    item.call_id = call->id;
    item.name = call->text;
  }
  items_.push_back(std::move(item));
  if (out == nullptr) return;
  begin_event(*out, "response.output_item.added");
  *out += R"(,"output_index":)";
  append_json_integer(*out, static_cast<std::int64_t>(items_.size()) - 1);
  *out += R"(,"item":)";
  append_item(*out, items_.back(), /*is_new=*/true);
  *out += "}\n\n";
  if (kind == ItemKind::kCall) return;
  begin_item_event(*out, "response.content_part.added", /*has_part=*/true);
  *out += R"(,"part":)";
  append_part(*out, items_.back(), /*is_new=*/true);
  *out += "}\n\n";
}

void ResponsesWriter::add_text(std::string* out, std::string_view text,
                               std::vector<LogprobEntry> logprobs) {
  Item& item = items_.back();
  item.text += text;
  if (out != nullptr) {
    const char* type = "response.output_text.delta";
    if (item.kind == ItemKind::kReasoning) type = "response.reasoning_text.delta";
    if (item.kind == ItemKind::kCall) type = "response.function_call_arguments.delta";
    begin_item_event(*out, type, /*has_part=*/item.kind != ItemKind::kCall);
    *out += R"(,"delta":)";
    append_json_string(*out, text);
    if (item.kind == ItemKind::kMessage) {
      *out += R"(,"logprobs":)";
      append_logprobs(*out, logprobs);
    }
    *out += "}\n\n";
  }
  for (LogprobEntry& entry : logprobs)
    item.logprobs.push_back(std::move(entry));
}

void ResponsesWriter::close_item(std::string* out, const char* status) {
  if (items_.empty() || items_.back().status != std::string_view(kOpen)) return;
  Item& item = items_.back();
  item.status = status;
  if (out == nullptr) return;
  const bool is_call = item.kind == ItemKind::kCall;
  const char* type = "response.output_text.done";
  if (item.kind == ItemKind::kReasoning) type = "response.reasoning_text.done";
  if (is_call) type = "response.function_call_arguments.done";
  begin_item_event(*out, type, !is_call);
  if (is_call) {
    *out += R"(,"name":)";
    append_json_string(*out, item.name);
  }
  *out += is_call ? R"(,"arguments":)" : R"(,"text":)";
  append_json_string(*out, item.text);
  if (item.kind == ItemKind::kMessage) {
    *out += R"(,"logprobs":)";
    append_logprobs(*out, item.logprobs);
  }
  *out += "}\n\n";
  if (!is_call) {
    begin_item_event(*out, "response.content_part.done", /*has_part=*/true);
    *out += R"(,"part":)";
    append_part(*out, item, /*is_new=*/false);
    *out += "}\n\n";
  }
  begin_event(*out, "response.output_item.done");
  *out += R"(,"output_index":)";
  append_json_integer(*out, static_cast<std::int64_t>(items_.size()) - 1);
  *out += R"(,"item":)";
  append_item(*out, item);
  *out += "}\n\n";
}

void ResponsesWriter::end_output(std::string* out, const ChoiceEnd& end) {
  // A prompt that was only computed ends at once, and as it should.
  const bool is_cut = !prewarms_ && std::string_view(end.reason) == "length";
  if (items_.empty() && !prewarms_) open_item(out, ItemKind::kMessage, nullptr);
  // A call is closed by its own end: one that is still open was cut off, be it by a stop string.
  const bool is_open_call = !items_.empty() && items_.back().kind == ItemKind::kCall;
  close_item(out, is_cut || is_open_call ? "incomplete" : "completed");
  status_ = is_cut ? "incomplete" : "completed";
  if (!is_cut) completed_at_ = unix_seconds();
}

void ResponsesWriter::cancel() {
  close_item(nullptr, "incomplete");
  status_ = "cancelled";
}

void ResponsesWriter::fail(const ApiError& error) {
  close_item(nullptr, "incomplete");
  status_ = "failed";
  completed_at_ = 0;
  error_ = error_json(error);
}

void ResponsesWriter::begin_event(std::string& out, std::string_view type) {
  out += "event: ";
  out += type;
  out += "\ndata: {\"type\":\"";
  out += type;
  out += R"(","sequence_number":)";
  append_json_integer(out, sequence_++);
}

void ResponsesWriter::begin_item_event(std::string& out, std::string_view type, bool has_part) {
  begin_event(out, type);
  out += R"(,"item_id":)";
  append_json_string(out, items_.back().id);
  out += R"(,"output_index":)";
  append_json_integer(out, static_cast<std::int64_t>(items_.size()) - 1);
  if (has_part) out += R"(,"content_index":0)";
}

void ResponsesWriter::append_response_event(std::string& out, std::string_view type) {
  begin_event(out, type);
  out += R"(,"response":)";
  out += object();
  out += "}\n\n";
}

void ResponsesWriter::append_logprobs(std::string& out,
                                      std::span<const LogprobEntry> entries) const {
  if (logprobs_)
    append_logprob_list(out, entries, show_.tokens_as_ids);
  else
    out += "[]";
}

void ResponsesWriter::append_part(std::string& out, const Item& item, bool is_new) const {
  if (item.kind == ItemKind::kReasoning) {
    out += R"({"type":"reasoning_text","text":)";
  } else {
    out += R"({"type":"output_text","annotations":[],"logprobs":)";
    append_logprobs(out, is_new ? std::span<const LogprobEntry>() : item.logprobs);
    out += R"(,"text":)";
  }
  append_json_string(out, is_new ? std::string_view() : item.text);
  out += '}';
}

void ResponsesWriter::append_item(std::string& out, const Item& item, bool is_new) const {
  out += R"({"id":)";
  append_json_string(out, item.id);
  out += R"(,"type":")";
  out += type_of(item.kind);
  out += R"(","status":")";
  out += item.status;
  out += '"';
  if (item.kind == ItemKind::kCall) {
    out += R"(,"call_id":)";
    append_json_string(out, item.call_id);
    out += R"(,"name":)";
    append_json_string(out, item.name);
    out += R"(,"arguments":)";
    append_json_string(out, item.text);
    out += '}';
    return;
  }
  out += item.kind == ItemKind::kMessage ? R"(,"role":"assistant")" : R"(,"summary":[])";
  out += R"(,"content":[)";
  if (!is_new) append_part(out, item, /*is_new=*/false);
  out += "]}";
}

std::vector<std::pair<std::string, std::string>> ResponsesWriter::items() const {
  std::vector<std::pair<std::string, std::string>> result;
  for (const Item& item : items_) {
    std::string json;
    append_item(json, item);
    result.emplace_back(item.id, std::move(json));
  }
  return result;
}

std::string ResponsesWriter::object() const {
  std::string out = R"({"id":)";
  append_json_string(out, label_.id);
  out += R"(,"object":"response","created_at":)";
  append_json_integer(out, label_.created);
  out += R"(,"status":")";
  out += status_;
  out += request_->background ? R"(","background":true)" : R"(","background":false)";
  out += R"(,"completed_at":)";
  if (completed_at_ > 0)
    append_json_integer(out, completed_at_);
  else
    out += "null";
  out += R"(,"error":)";
  out += error_.empty() ? "null" : error_;
  out += R"(,"incomplete_details":)";
  out += status_ == "incomplete" ? R"({"reason":"max_output_tokens"})" : "null";
  out += R"(,"model":)";
  append_json_string(out, label_.model);
  out += ',';
  out += request_->echo;
  out += R"(,"output":[)";
  for (std::size_t i = 0; i < items_.size(); ++i) {
    if (i > 0) out += ',';
    append_item(out, items_[i]);
  }
  out += R"(],"usage":)";
  out += usage_.empty() ? "null" : usage_;
  out += prompt_fields_;
  if (show_.token_ids) {
    out += R"(,"token_ids":)";
    append_token_ids(out, token_ids_);
  }
  if (!explanation_.empty()) out += ",\"thaw\":" + explanation_;
  return out + '}';
}

}  // namespace thaw::coalescer
