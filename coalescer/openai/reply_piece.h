#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace thaw::coalescer {

enum class PieceKind : std::uint8_t { kReasoning, kContent, kCallStart, kArguments, kCallEnd };

/// A part of a reply, whatever API it is written for. Pieces come in the order of the text; the
/// pieces of one call are not interrupted by others.
struct ReplyPiece {
  PieceKind kind = PieceKind::kContent;
  std::string text;  ///< of reasoning, content, or JSON text of arguments; of a start the name
  std::string id;  ///< of a start: the call's
  std::uint32_t call = 0;  ///< counts the calls of the reply
};

using ReplyPieces = std::vector<ReplyPiece>;

/// Adds text to the last piece where it goes on with it, else a new piece.
void append_piece(ReplyPieces& pieces, PieceKind kind, std::string_view text,
                  std::uint32_t call = 0);

/// Adds `more` in the same way.
void append_pieces(ReplyPieces& pieces, ReplyPieces more);

}  // namespace thaw::coalescer
