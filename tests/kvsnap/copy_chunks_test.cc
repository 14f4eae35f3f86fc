#include "kvsnap/copy_chunks.h"

#include <array>
#include <random>

#include <gtest/gtest.h>

namespace thaw::kvsnap {
namespace {

// Two address ranges that no test reads.
std::array<std::byte, 4096> kv_memory;
std::array<std::byte, 4096> arena_memory;

CopyPiece piece(std::size_t from, std::size_t to, std::size_t size) {
  return {kv_memory.data() + from, arena_memory.data() + to, size};
}

std::vector<CopyChunk> cut(const std::vector<ExtentCopy>& extents, ChunkLimits limits) {
  return cut_into_chunks(CopyDirection::kToArena, extents, limits);
}

TEST(CopyChunks, NeighboursOnBothSidesBecomeOneCopy) {
  const auto chunks = cut({{{piece(0, 100, 10), piece(10, 110, 10), piece(30, 120, 10)}}}, {});
  ASSERT_EQ(chunks.size(), 1U);
  ASSERT_EQ(chunks[0].copies.size(), 2U);
  EXPECT_EQ(chunks[0].copies[0].size_bytes, 20U);
  EXPECT_EQ(chunks[0].copies[1].source, kv_memory.data() + 30);
  EXPECT_EQ(chunks[0].arena.data(), arena_memory.data() + 100);
  EXPECT_EQ(chunks[0].arena.size(), 30U);
}

TEST(CopyChunks, LimitsCutBetweenAndInsidePieces) {
  const auto chunks = cut({{{piece(0, 0, 25), piece(50, 25, 5)}}}, {.max_bytes = 10});
  ASSERT_EQ(chunks.size(), 3U);
  EXPECT_EQ(chunks[2].copies.size(), 2U);  // the tail of the first piece and the second
  EXPECT_EQ(chunks[2].copies[0].source, kv_memory.data() + 20);
  const auto few = cut({{{piece(0, 0, 4), piece(10, 4, 4), piece(20, 8, 4), piece(24, 12, 4)}}},
                       {.max_bytes = 100, .max_copies = 2});
  ASSERT_EQ(few.size(), 2U);
  EXPECT_EQ(few[1].copies.size(), 1U);  // the last two join
  EXPECT_EQ(few[1].arena.size(), 8U);
}

TEST(CopyChunks, UnwantedPiecesAreChecksummedAndNotCopied) {
  ExtentCopy extent;
  for (std::size_t i = 0; i < 4; ++i)
    extent.pieces.push_back({arena_memory.data() + i * 8, nullptr, 8});
  extent.pieces[2].destination = kv_memory.data();
  const auto chunks = cut_into_chunks(CopyDirection::kFromArena, {extent}, {});
  ASSERT_EQ(chunks.size(), 1U);
  EXPECT_EQ(chunks[0].arena.size(), 32U);
  ASSERT_EQ(chunks[0].copies.size(), 1U);
  EXPECT_EQ(chunks[0].copies[0].source, arena_memory.data() + 16);
}

TEST(CopyChunks, AnEmptyCopyHasNone) {
  EXPECT_TRUE(cut({}, {}).empty());
  EXPECT_TRUE(cut({ExtentCopy{}}, {}).empty());
}

// Every byte is copied once from where it lies to where it belongs, and checksummed once in order.
TEST(CopyChunks, RandomCopiesLoseNothing) {
  std::mt19937 random(7);
  const auto number = [&](std::size_t most) { return 1 + random() % most; };
  for (int round = 0; round < 200; ++round) {
    std::vector<ExtentCopy> extents(number(3));
    std::vector<const std::byte*> source_of(arena_memory.size(), nullptr);
    std::size_t at = 0;
    for (ExtentCopy& extent : extents) {
      at += number(9);
      for (std::size_t pieces = number(6); pieces > 0; --pieces) {
        const std::size_t size = number(40);
        const std::size_t from = random() % 3 == 0 ? at : random() % 4000;  // some are neighbours
        extent.pieces.push_back(piece(from, at, size));
        for (std::size_t i = 0; i < size; ++i)
          source_of[at + i] = kv_memory.data() + from + i;
        at += size;
      }
    }
    const ChunkLimits limits{number(50), number(4)};
    std::vector<const std::byte*> copied(arena_memory.size(), nullptr);
    const std::byte* next = nullptr;
    std::size_t extent = 0;
    for (const CopyChunk& chunk : cut(extents, limits)) {
      ASSERT_LE(chunk.arena.size(), limits.max_bytes);
      ASSERT_LE(chunk.copies.size(), limits.max_copies);
      if (next == nullptr || chunk.extent != extent) {
        next = extents[chunk.extent].pieces[0].destination;
        extent = chunk.extent;
      }
      ASSERT_EQ(chunk.arena.data(), next);
      next += chunk.arena.size();
      for (const CopyPiece& copy : chunk.copies) {
        for (std::size_t i = 0; i < copy.size_bytes; ++i) {
          const std::byte*& place = copied[copy.destination - arena_memory.data() + i];
          ASSERT_EQ(place, nullptr) << "copied twice";
          place = copy.source + i;
        }
      }
    }
    ASSERT_EQ(copied, source_of) << "round " << round;
  }
}

}  // namespace
}  // namespace thaw::kvsnap
