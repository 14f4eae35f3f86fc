#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "coalescer/openai/answer_writer.h"
#include "coalescer/openai/reply_piece.h"

namespace thaw::coalescer {

// What writers of answers are given, and what they send.

inline CompletionLabel label() {
  return {"id-1", 1700000000, "model \"quoted\"", "print"};
}

inline ReplyPiece piece(PieceKind kind, std::string text, std::uint32_t call = 0) {
  ReplyPiece made;
  made.kind = kind;
  made.text = std::move(text);
  made.call = call;
  if (kind == PieceKind::kCallStart) made.id = "call_" + std::to_string(call);
  return made;
}

/// The data of named events; their names must be those of the data.
inline std::vector<nlohmann::json> events_of(const std::string& frames) {
  std::vector<nlohmann::json> events;
  std::size_t at = 0;
  while (at < frames.size()) {
    const std::size_t end = frames.find("\n\n", at);
    const std::string frame = frames.substr(at, end - at);
    at = end + 2;
    const std::size_t line = frame.find('\n');
    EXPECT_TRUE(frame.starts_with("event: ")) << frame;
    EXPECT_EQ(frame.substr(line + 1, 6), "data: ") << frame;
    events.push_back(nlohmann::json::parse(frame.substr(line + 7)));
    EXPECT_EQ(events.back()["type"], frame.substr(7, line - 7)) << frame;
  }
  return events;
}

}  // namespace thaw::coalescer
