#include "coalescer/openai/reply_piece.h"

#include <utility>

namespace thaw::coalescer {

void append_piece(ReplyPieces& pieces, PieceKind kind, std::string_view text, std::uint32_t call) {
  if (!pieces.empty() && pieces.back().kind == kind && pieces.back().call == call) {
    pieces.back().text += text;
    return;
  }
  ReplyPiece& piece = pieces.emplace_back();
  piece.kind = kind;
  piece.text = text;
  piece.call = call;
}

void append_pieces(ReplyPieces& pieces, ReplyPieces more) {
  for (ReplyPiece& piece : more) {
    if (piece.kind == PieceKind::kCallStart || piece.kind == PieceKind::kCallEnd)
      pieces.push_back(std::move(piece));
    else
      append_piece(pieces, piece.kind, piece.text, piece.call);
  }
}

}  // namespace thaw::coalescer
