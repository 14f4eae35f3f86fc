#include "coalescer/openai/messages_writer.h"

#include <algorithm>
#include <utility>

#include <nlohmann/json.hpp>

#include "coalescer/openai/chunk_writer.h"
#include "coalescer/openai/json_text.h"
#include "coalescer/openai/messages_error.h"

namespace thaw::coalescer {
namespace {

void append_number(std::string& out, std::string_view name, std::uint64_t value) {
  out += name;
  append_json_integer(out, static_cast<std::int64_t>(value));
}

void append_event(std::string& out, std::string_view type) {
  out += "event: ";
  out += type;
  out += "\ndata: {\"type\":\"";
  out += type;
  out += '"';
}

constexpr std::string_view kEventEnd = "}\n\n";

/// Fields of a call's block, up to its input.
std::string call_fields(const ReplyPiece& start) {
  std::string fields = R"("type":"tool_use","id":)";
  append_json_string(fields, start.id);
  fields += R"(,"name":)";
  append_json_string(fields, start.text);
  return fields;
}

/// The input of a whole call. What was cut off is no JSON: it stands beside an empty input.
void append_input(std::string& out, const std::string& arguments) {
  const auto input = nlohmann::ordered_json::parse(arguments, nullptr, /*allow_exceptions=*/false);
  out += R"(,"input":)";
  if (input.is_object()) {
    out += arguments;  // numbers keep the form that the model gave them
    return;
  }
  out += "{}";
  if (arguments.empty()) return;
  out += R"(,"partial_json":)";
  append_json_string(out, arguments);
}

/// A block of an unstreamed answer, from the piece at `at` on; gives where the next one begins.
std::size_t append_block(std::string& out, const ReplyPieces& pieces, std::size_t at,
                         std::string_view signature) {
  const ReplyPiece& first = pieces[at++];
  if (first.kind == PieceKind::kCallStart) {
    std::string arguments;
    for (; at < pieces.size() && pieces[at].kind == PieceKind::kArguments; ++at)
      arguments += pieces[at].text;
    if (at < pieces.size() && pieces[at].kind == PieceKind::kCallEnd) ++at;
    out += '{' + call_fields(first);
    append_input(out, arguments);
  } else if (first.kind == PieceKind::kReasoning) {
    out += R"({"type":"thinking","thinking":)";
    append_json_string(out, first.text);
    out += R"(,"signature":)";
    append_json_string(out, signature);
  } else {
    out += R"({"type":"text","text":)";
    append_json_string(out, first.text);
  }
  out += '}';
  return at;
}

}  // namespace

MessagesWriter::MessagesWriter(const ApiCall& call, const CompletionLabel& label)
    : label_(label),
      max_tokens_(call.max_tokens),
      marks_hour_(call.cache.ttl >= std::chrono::hours(1)) {}

void MessagesWriter::set_system_fingerprint(const std::string& fingerprint) {
  label_.system_fingerprint = fingerprint;
}

std::string MessagesWriter::message_head() const {
  std::string out = R"({"id":)";
  append_json_string(out, label_.id);
  out += R"(,"type":"message","role":"assistant","model":)";
  append_json_string(out, label_.model);
  if (!label_.system_fingerprint.empty()) {
    out += R"(,"system_fingerprint":)";
    append_json_string(out, label_.system_fingerprint);
  }
  out += R"(,"content":[)";
  return out;
}

void MessagesWriter::append_stop(std::string& out, const ChoiceEnd& end,
                                 const CompletionUsage& usage) const {
  const std::string_view reason = end.reason;
  const char* name = "end_turn";
  if (reason == "tool_calls")
    name = "tool_use";
  else if (reason == "length" && max_tokens_ && usage.completion_tokens < *max_tokens_)
    name = "model_context_window_exceeded";
  else if (reason == "length")
    name = "max_tokens";
  else if (end.stop_string)
    name = "stop_sequence";
  out += R"("stop_reason":)";
  append_json_string(out, name);
  out += R"(,"stop_sequence":)";
  if (end.stop_string && reason == "stop")
    append_json_string(out, *end.stop_string);
  else
    out += "null";
}

void MessagesWriter::append_usage(std::string& out, const CompletionUsage& usage) const {
  const std::uint64_t read = std::min(usage.cached_tokens, usage.prompt_tokens);
  const std::uint64_t kept = std::min(usage.kept_tokens, usage.prompt_tokens);
  const std::uint64_t created = kept - std::min(kept, read);
  append_number(out, R"("usage":{"input_tokens":)", usage.prompt_tokens - read - created);
  append_number(out, R"(,"cache_creation_input_tokens":)", created);
  append_number(out, R"(,"cache_read_input_tokens":)", read);
  append_number(out, R"(,"cache_creation":{"ephemeral_5m_input_tokens":)",
                marks_hour_ ? 0 : created);
  append_number(out, R"(,"ephemeral_1h_input_tokens":)", marks_hour_ ? created : 0);
  append_number(out, R"(},"output_tokens":)", usage.completion_tokens);
  if (const auto& session = usage.session) {
    out += ',';
    ChunkWriter::append_session_usage(out, *session, usage.cached_tokens);
  }
  out += '}';
}

void MessagesWriter::append_start(std::string& out, std::uint64_t prompt_tokens) {
  append_event(out, "message_start");
  out += R"(,"message":)" + message_head();
  out += R"(],"stop_reason":null,"stop_sequence":null,)";
  CompletionUsage usage;
  usage.prompt_tokens = prompt_tokens;
  append_usage(out, usage);
  out += '}';
  out += kEventEnd;
  append_event(out, "ping");
  out += kEventEnd;
}

void MessagesWriter::open_block(std::string& out, PieceKind kind, std::string_view fields) {
  close_block(out);
  open_ = kind;
  append_event(out, "content_block_start");
  append_number(out, R"(,"index":)", num_blocks_);
  out += R"(,"content_block":{)";
  out += fields;
  out += '}';
  out += kEventEnd;
}

void MessagesWriter::append_block_delta(std::string& out, std::string_view type,
                                        std::string_view field, std::string_view text) const {
  append_event(out, "content_block_delta");
  append_number(out, R"(,"index":)", num_blocks_);
  out += R"(,"delta":{"type":")";
  out += type;
  out += "\",\"";
  out += field;
  out += "\":";
  append_json_string(out, text);
  out += '}';
  out += kEventEnd;
}

void MessagesWriter::close_block(std::string& out) {
  if (!open_) return;
  // Clients send it back with the thinking; here it only has to be there.
  if (*open_ == PieceKind::kReasoning)
    append_block_delta(out, "signature_delta", "signature", label_.id);
  append_event(out, "content_block_stop");
  append_number(out, R"(,"index":)", num_blocks_);
  out += kEventEnd;
  ++num_blocks_;
  open_.reset();
}

void MessagesWriter::append_piece_events(std::string& out, const ReplyPiece& piece) {
  switch (piece.kind) {
    case PieceKind::kReasoning:
      if (piece.text.empty()) return;
      if (open_ != piece.kind)
        open_block(out, piece.kind, R"("type":"thinking","thinking":"","signature":"")");
      return append_block_delta(out, "thinking_delta", "thinking", piece.text);
    case PieceKind::kContent:
      if (piece.text.empty()) return;
      if (open_ != piece.kind) open_block(out, piece.kind, R"("type":"text","text":"")");
      return append_block_delta(out, "text_delta", "text", piece.text);
    case PieceKind::kCallStart:
      return open_block(out, piece.kind, call_fields(piece) + R"(,"input":{})");
    case PieceKind::kArguments:
      return append_block_delta(out, "input_json_delta", "partial_json", piece.text);
    case PieceKind::kCallEnd:
      return close_block(out);
  }
}

void MessagesWriter::append_delta(std::string& out, const Delta& delta) {
  for (const ReplyPiece& piece : delta.pieces)
    append_piece_events(out, piece);
  if (!delta.end) return;
  end_ = *delta.end;
  close_block(out);
}

void MessagesWriter::append_end(std::string& out, const CompletionUsage& usage,
                                const std::string& explanation) {
  close_block(out);
  append_event(out, "message_delta");
  out += R"(,"delta":{)";
  append_stop(out, end_, usage);
  out += "},";
  append_usage(out, usage);
  if (!explanation.empty()) out += ",\"thaw\":" + explanation;
  out += kEventEnd;
}

void MessagesWriter::append_done(std::string& out) {
  append_event(out, "message_stop");
  out += kEventEnd;
}

void MessagesWriter::append_error(std::string& out, const ApiError& error) {
  out += "event: error\ndata: " + message_error_body(error, label_.id) + "\n\n";
}

std::string MessagesWriter::body(const std::vector<WholeChoice>& choices,
                                 const CompletionUsage& usage, const std::string& explanation) {
  const WholeChoice none;
  const WholeChoice& choice = choices.empty() ? none : choices.front();
  std::string out = message_head();
  const std::size_t begin = out.size();
  for (std::size_t at = 0; at < choice.pieces.size();) {
    if (choice.pieces[at].kind == PieceKind::kContent && choice.pieces[at].text.empty()) {
      ++at;
      continue;
    }
    if (out.size() > begin) out += ',';
    at = append_block(out, choice.pieces, at, label_.id);
  }
  out += "],";
  append_stop(out, choice.end, usage);
  out += ',';
  append_usage(out, usage);
  if (!explanation.empty()) out += ",\"thaw\":" + explanation;
  out += '}';
  return out;
}

}  // namespace thaw::coalescer
