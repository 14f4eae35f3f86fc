#include "kvsnap/copy_chunks.h"

#include <algorithm>

namespace thaw::kvsnap {
namespace {

bool follows(const CopyPiece& before, const std::byte* source, const std::byte* destination) {
  return before.source + before.size_bytes == source &&
         before.destination + before.size_bytes == destination;
}

}  // namespace

std::vector<CopyChunk> cut_into_chunks(CopyDirection direction,
                                       const std::vector<ExtentCopy>& extents,
                                       const ChunkLimits& limits) {
  std::vector<CopyChunk> chunks;
  for (std::size_t extent = 0; extent < extents.size(); ++extent) {
    std::size_t room = 0;  // in the chunk being filled
    for (const CopyPiece& piece : extents[extent].pieces) {
      for (std::size_t offset = 0; offset < piece.size_bytes;) {
        const std::byte* source = piece.source + offset;
        std::byte* destination =
            piece.destination == nullptr ? nullptr : piece.destination + offset;
        const bool joins = room > 0 && destination != nullptr && !chunks.back().copies.empty() &&
                           follows(chunks.back().copies.back(), source, destination);
        const bool full = room > 0 && !joins && destination != nullptr &&
                          chunks.back().copies.size() == limits.max_copies;
        if (room == 0 || full) {
          const std::byte* arena = direction == CopyDirection::kToArena ? destination : source;
          chunks.push_back({extent, {arena, 0}, {}});
          room = limits.max_bytes;
        }
        CopyChunk& chunk = chunks.back();
        const std::size_t size = std::min(room, piece.size_bytes - offset);
        if (joins) {
          chunk.copies.back().size_bytes += size;
        } else if (destination != nullptr) {
          chunk.copies.push_back({source, destination, size});
        }
        chunk.arena = {chunk.arena.data(), chunk.arena.size() + size};
        room -= size;
        offset += size;
      }
    }
  }
  return chunks;
}

}  // namespace thaw::kvsnap
