#include "coalescer/openai/chunk_writer.h"

#include <algorithm>

#include "coalescer/openai/json_text.h"
#include "coalescer/openai/message_json.h"

namespace thaw::coalescer {
namespace {

std::string head(const CompletionLabel& label, std::string_view object) {
  std::string out = "{";
  if (label.branch) {
    out += R"("branch":)";
    append_json_integer(out, static_cast<std::int64_t>(*label.branch));
    out += ',';
  }
  if (!label.branch_label.empty()) {
    out += R"("label":)";
    append_json_string(out, label.branch_label);
    out += ',';
  }
  out += R"("id":)";
  append_json_string(out, label.id);
  out += R"(,"object":)";
  append_json_string(out, object);
  out += R"(,"created":)";
  append_json_integer(out, label.created);
  out += R"(,"model":)";
  append_json_string(out, label.model);
  out += R"(,"system_fingerprint":)";
  append_json_string_or_null(out, label.system_fingerprint);
  out += R"(,"choices":[)";
  return out;
}

void append_bytes(std::string& out, std::string_view bytes) {
  out += '[';
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    if (i > 0) out += ',';
    append_json_integer(out, static_cast<unsigned char>(bytes[i]));
  }
  out += ']';
}

/// How a token is shown: its text, or its id where clients want to tell tokens apart.
std::string shown(const LogprobEntry::Candidate& candidate, bool as_id) {
  return as_id ? "token_id:" + std::to_string(candidate.token) : candidate.bytes;
}

void append_candidate(std::string& out, const LogprobEntry::Candidate& candidate, bool as_id) {
  out += R"({"token":)";
  append_json_string(out, shown(candidate, as_id));
  out += R"(,"logprob":)";
  append_json_float(out, candidate.logprob);
  out += R"(,"bytes":)";
  append_bytes(out, candidate.bytes);
}

void append_chat_logprobs(std::string& out, const std::vector<LogprobEntry>& entries, bool as_ids) {
  out += R"({"content":)";
  append_logprob_list(out, entries, as_ids);
  out += R"(,"refusal":null})";
}

/// Two tokens that read alike (parts of characters) keep the better one.
void append_best(std::string& out, const LogprobEntry& entry, bool as_ids) {
  std::vector<std::string> seen;
  out += '{';
  for (const auto& candidate : entry.best) {
    std::string key;
    append_json_string(key, shown(candidate, as_ids));
    if (std::ranges::find(seen, key) != seen.end()) continue;
    if (!seen.empty()) out += ',';
    out += key;
    out += ':';
    append_json_float(out, candidate.logprob);
    seen.push_back(std::move(key));
  }
  out += '}';
}

/// The older form of /v1/completions: parallel lists.
void append_text_logprobs(std::string& out, const std::vector<LogprobEntry>& entries, bool as_ids) {
  const auto list = [&](const char* name, auto&& append_one) {
    out += name;
    for (std::size_t i = 0; i < entries.size(); ++i) {
      if (i > 0) out += ',';
      append_one(entries[i]);
    }
    out += ']';
  };
  list(R"({"tokens":[)",
       [&](const LogprobEntry& e) { append_json_string(out, shown(e.chosen, as_ids)); });
  list(R"(,"token_logprobs":[)", [&](const LogprobEntry& e) {
    if (e.is_known)
      append_json_float(out, e.chosen.logprob);
    else
      out += "null";
  });
  list(R"(,"top_logprobs":[)", [&](const LogprobEntry& e) {
    if (e.is_known)
      append_best(out, e, as_ids);
    else
      out += "null";
  });
  list(R"(,"text_offset":[)", [&](const LogprobEntry& e) {
    append_json_integer(out, static_cast<std::int64_t>(e.text_offset));
  });
  out += '}';
}

void append_finish(std::string& out, const std::optional<ChoiceEnd>& end, bool legacy_functions) {
  out += R"(,"finish_reason":)";
  if (!end) {
    out += "null";
    return;
  }
  const std::string_view reason = end->reason;
  append_json_string(out, legacy_functions && reason == "tool_calls" ? "function_call" : reason);
  out += R"(,"stop_reason":)";
  if (end->stop_string)
    append_json_string(out, *end->stop_string);
  else if (end->stop_token)
    append_json_integer(out, *end->stop_token);
  else
    out += "null";
}

}  // namespace

void append_logprob_list(std::string& out, std::span<const LogprobEntry> entries, bool as_ids) {
  out += '[';
  for (std::size_t i = 0; i < entries.size(); ++i) {
    if (i > 0) out += ',';
    append_candidate(out, entries[i].chosen, as_ids);
    out += R"(,"top_logprobs":[)";
    for (std::size_t j = 0; j < entries[i].best.size(); ++j) {
      if (j > 0) out += ',';
      append_candidate(out, entries[i].best[j], as_ids);
      out += '}';
    }
    out += "]}";
  }
  out += ']';
}

void append_token_ids(std::string& out, std::span<const TokenId> tokens) {
  out += '[';
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (i > 0) out += ',';
    append_json_integer(out, tokens[i]);
  }
  out += ']';
}

ChunkWriter::ChunkWriter(const ApiCall& call, const CompletionLabel& label)
    : kind_(call.kind),
      label_(label),
      logprobs_(call.logprobs),
      include_usage_(call.include_usage),
      show_(call.show) {
  make_heads();
}

void ChunkWriter::make_heads() {
  const bool chat = kind_ == ApiKind::kChat;
  frame_head_ = "data: " + head(label_, chat ? "chat.completion.chunk" : "text_completion");
  body_head_ = head(label_, chat ? "chat.completion" : "text_completion");
}

void ChunkWriter::set_system_fingerprint(const std::string& fingerprint) {
  label_.system_fingerprint = fingerprint;
  make_heads();
}

void ChunkWriter::append_start(std::string& /*out*/, std::uint64_t /*prompt_tokens*/) {}

void ChunkWriter::append_logprobs(std::string& out,
                                  const std::vector<LogprobEntry>& entries) const {
  out += R"(,"logprobs":)";
  if (!logprobs_ || entries.empty())
    out += "null";
  else if (kind_ == ApiKind::kChat)
    append_chat_logprobs(out, entries, show_.tokens_as_ids);
  else
    append_text_logprobs(out, entries, show_.tokens_as_ids);
}

void ChunkWriter::append_delta(std::string& out, const Delta& delta) {
  // The end of a call says nothing in this API.
  const bool is_silent =
      !delta.role && !delta.end && delta.logprobs.empty() && delta.token_ids.empty() &&
      delta.prompt_fields.empty() &&
      std::all_of(delta.pieces.begin(), delta.pieces.end(),
                  [](const auto& piece) { return piece.kind == PieceKind::kCallEnd; });
  if (is_silent) return;
  out += frame_head_;
  out += R"({"index":)";
  append_json_integer(out, static_cast<std::int64_t>(delta.choice));
  if (kind_ == ApiKind::kChat) {
    out += R"(,"delta":{)";
    if (delta.role)
      out += R"("role":"assistant","content":"")";
    else if (!delta.pieces.empty())
      append_delta_fields(out, delta.pieces, show_.legacy_functions);
    else if (!delta.end)
      out += R"("content":"")";
    out += '}';
  } else {
    out += R"(,"text":)";
    append_json_string(out, text_of_pieces(delta.pieces));
  }
  append_logprobs(out, delta.logprobs);
  append_finish(out, delta.end, show_.legacy_functions);
  if (show_.token_ids) {
    out += R"(,"token_ids":)";
    append_token_ids(out, delta.token_ids);
  }
  if (kind_ == ApiKind::kCompletions) out += delta.prompt_fields;
  out += "}]";
  if (kind_ == ApiKind::kChat) out += delta.prompt_fields;
  if (delta.usage) {
    out += ',';
    append_usage_object(out, *delta.usage);
  } else if (include_usage_) {
    out += R"(,"usage":null)";
  }
  out += "}\n\n";
}

void ChunkWriter::append_usage_object(std::string& out, const CompletionUsage& usage) {
  const auto number = [&](const char* name, std::uint64_t value) {
    out += name;
    append_json_integer(out, static_cast<std::int64_t>(value));
  };
  number(R"("usage":{"prompt_tokens":)", usage.prompt_tokens);
  number(R"(,"completion_tokens":)", usage.completion_tokens);
  number(R"(,"total_tokens":)", usage.prompt_tokens + usage.completion_tokens);
  number(R"(,"prompt_tokens_details":{"cached_tokens":)", usage.cached_tokens);
  // What was computed is there for the next one.
  number(R"(,"cache_write_tokens":)",
         usage.prompt_tokens - std::min(usage.cached_tokens, usage.prompt_tokens));
  number(R"(},"completion_tokens_details":{"reasoning_tokens":)", usage.reasoning_tokens);
  out += '}';
  if (const auto& session = usage.session) {
    out += ',';
    append_session_usage(out, *session, usage.cached_tokens);
  }
  out += '}';
}

void ChunkWriter::append_session_usage(std::string& out, const SessionUsage& session,
                                       std::uint64_t cached_tokens) {
  const std::uint64_t common = session.common_tokens;
  out += R"("session":{"id":)";
  append_json_string(out, session.id);
  out += session.appended ? R"(,"mode":"append")" : R"(,"mode":"render")";
  out += R"(,"common_tokens":)";
  append_json_integer(out, static_cast<std::int64_t>(common));
  out += R"(,"recomputed_tokens":)";
  append_json_integer(out, static_cast<std::int64_t>(common - std::min(common, cached_tokens)));
  out += '}';
}

void ChunkWriter::append_end(std::string& out, const CompletionUsage& usage,
                             const std::string& explanation) {
  if (!include_usage_ && explanation.empty()) return;
  out += frame_head_;
  out += ']';
  if (include_usage_) {
    out += ',';
    append_usage_object(out, usage);
  }
  if (!explanation.empty()) out += ",\"thaw\":" + explanation;
  out += "}\n\n";
}

void ChunkWriter::append_done(std::string& out) {
  out += kDoneFrame;
}

void ChunkWriter::append_error(std::string& out, const ApiError& error) {
  out += error_frame(error);
}

void ChunkWriter::append_choice(std::string& out, std::size_t index,
                                const WholeChoice& choice) const {
  out += R"({"index":)";
  append_json_integer(out, static_cast<std::int64_t>(index));
  if (kind_ == ApiKind::kChat) {
    out += R"(,"message":{"role":"assistant",)";
    append_message_fields(out, choice.pieces, show_.legacy_functions);
    out += R"(,"refusal":null})";
  } else {
    out += R"(,"text":)";
    append_json_string(out, text_of_pieces(choice.pieces));
  }
  append_logprobs(out, choice.logprobs);
  append_finish(out, choice.end, show_.legacy_functions);
  if (show_.token_ids) {
    out += R"(,"token_ids":)";
    append_token_ids(out, choice.token_ids);
  }
  if (kind_ == ApiKind::kCompletions) out += choice.prompt_fields;
  out += '}';
}

std::string ChunkWriter::body(const std::vector<WholeChoice>& choices, const CompletionUsage& usage,
                              const std::string& explanation) {
  std::string out = body_head_;
  for (std::size_t i = 0; i < choices.size(); ++i) {
    if (i > 0) out += ',';
    append_choice(out, i, choices[i]);
  }
  out += ']';
  // A chat has one prompt, and what is said of it stands beside the choices.
  if (kind_ == ApiKind::kChat && !choices.empty()) out += choices.front().prompt_fields;
  out += ',';
  append_usage_object(out, usage);
  if (metadata_) {
    out += R"(,"thaw_metadata":{"latency_s":)";
    append_json_float(out, static_cast<float>(metadata_->latency_seconds));
    out += R"(,"slot_id":)";
    append_json_integer(out, metadata_->slot);
    out += '}';
  }
  if (!explanation.empty()) out += ",\"thaw\":" + explanation;
  out += '}';
  return out;
}

std::string error_frame(const ApiError& error) {
  return "data: " + error_body(error) + "\n\n";
}

}  // namespace thaw::coalescer
