#include "coalescer/openai/message_json.h"

#include <string_view>
#include <vector>

#include "coalescer/openai/json_text.h"

namespace thaw::coalescer {
namespace {

using nlohmann::ordered_json;

std::string joined(const ReplyPieces& pieces, PieceKind kind) {
  std::string text;
  for (const ReplyPiece& piece : pieces)
    if (piece.kind == kind) text += piece.text;
  return text;
}

/// What pieces say of one call.
struct CallPart {
  std::uint32_t call = 0;
  bool begins = false;
  std::string id;
  std::string name;
  std::string arguments;
};

std::vector<CallPart> call_parts(const ReplyPieces& pieces) {
  std::vector<CallPart> parts;
  for (const ReplyPiece& piece : pieces) {
    if (piece.kind != PieceKind::kCallStart && piece.kind != PieceKind::kArguments) continue;
    if (parts.empty() || parts.back().call != piece.call) {
      parts.emplace_back();
      parts.back().call = piece.call;
    }
    CallPart& part = parts.back();
    if (piece.kind == PieceKind::kCallStart) {
      part.begins = true;
      part.id = piece.id;
      part.name = piece.text;
    } else {
      part.arguments += piece.text;
    }
  }
  return parts;
}

void append_function(std::string& out, const CallPart& part) {
  out += '{';
  if (part.begins) {
    out += R"("name":)";
    append_json_string(out, part.name);
    out += ',';
  }
  out += R"("arguments":)";
  append_json_string(out, part.arguments);
  out += '}';
}

void append_calls(std::string& out, const std::vector<CallPart>& parts, bool indexed) {
  out += R"("tool_calls":[)";
  for (std::size_t i = 0; i < parts.size(); ++i) {
    if (i > 0) out += ',';
    out += '{';
    if (indexed) {
      out += R"("index":)";
      append_json_integer(out, parts[i].call);
      out += ',';
    }
    if (parts[i].begins) {
      out += R"("id":)";
      append_json_string(out, parts[i].id);
      out += R"(,"type":"function",)";
    }
    out += R"("function":)";
    append_function(out, parts[i]);
    out += '}';
  }
  out += ']';
}

void append_reasoning(std::string& out, std::string_view text) {
  // Both names: newer clients read the first, older ones the second.
  for (const char* name : {R"("reasoning":)", R"(,"reasoning_content":)"}) {
    out += name;
    append_json_string(out, text);
  }
}

/// The calls, in the one form or the other; `legacy` has room for one.
void append_any_calls(std::string& out, const std::vector<CallPart>& parts, bool legacy,
                      bool indexed) {
  if (!legacy) return append_calls(out, parts, indexed);
  out += R"("function_call":)";
  append_function(out, parts.front());
}

}  // namespace

std::string text_of_pieces(const ReplyPieces& pieces) {
  return joined(pieces, PieceKind::kContent);
}

void append_message_fields(std::string& out, const ReplyPieces& pieces, bool legacy) {
  const std::vector<CallPart> calls = call_parts(pieces);
  const std::string content = text_of_pieces(pieces);
  out += R"("content":)";
  if (content.empty() && !calls.empty())
    out += "null";
  else
    append_json_string(out, content);
  if (const std::string thought = joined(pieces, PieceKind::kReasoning); !thought.empty()) {
    out += ',';
    append_reasoning(out, thought);
  }
  if (calls.empty()) return;
  out += ',';
  append_any_calls(out, calls, legacy, /*indexed=*/false);
}

void append_delta_fields(std::string& out, const ReplyPieces& pieces, bool legacy) {
  const std::size_t begin = out.size();
  const auto comma = [&] {
    if (out.size() > begin) out += ',';
  };
  if (const std::string thought = joined(pieces, PieceKind::kReasoning); !thought.empty())
    append_reasoning(out, thought);
  if (const std::string content = text_of_pieces(pieces); !content.empty()) {
    comma();
    out += R"("content":)";
    append_json_string(out, content);
  }
  const std::vector<CallPart> calls = call_parts(pieces);
  if (calls.empty()) return;
  comma();
  append_any_calls(out, calls, legacy, /*indexed=*/true);
}

ordered_json message_of_pieces(const ReplyPieces& pieces) {
  ordered_json message = {{"role", "assistant"}, {"content", text_of_pieces(pieces)}};
  if (const std::string thought = joined(pieces, PieceKind::kReasoning); !thought.empty())
    message["reasoning_content"] = thought;
  for (const CallPart& part : call_parts(pieces)) {
    ordered_json arguments =
        ordered_json::parse(part.arguments, nullptr, /*allow_exceptions=*/false);
    // A call that was cut off.
    if (arguments.is_discarded()) arguments = part.arguments;
    ordered_json call;
    call["id"] = part.id;
    call["type"] = "function";
    call["function"] = {{"name", part.name}, {"arguments", std::move(arguments)}};
    message["tool_calls"].push_back(std::move(call));
  }
  return message;
}

}  // namespace thaw::coalescer
