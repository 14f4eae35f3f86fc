#pragma once

#include <string>

#include <nlohmann/json.hpp>

#include "coalescer/openai/reply_piece.h"

namespace thaw::coalescer {

/// Content of the pieces, joined.
std::string text_of_pieces(const ReplyPieces& pieces);

/// Fields of a whole message: `content` (null where there are only calls), `reasoning` and
/// `reasoning_content`, `tool_calls`. `legacy`: `function_call` instead of these.
void append_message_fields(std::string& out, const ReplyPieces& pieces, bool legacy);

/// The same of one step of a stream. The entry that begins a call has `index`, `id`, `type` and the
/// name; later ones `index` and more of the arguments.
void append_delta_fields(std::string& out, const ReplyPieces& pieces, bool legacy);

/// The message as chat templates read it: content a string, arguments objects.
nlohmann::ordered_json message_of_pieces(const ReplyPieces& pieces);

}  // namespace thaw::coalescer
