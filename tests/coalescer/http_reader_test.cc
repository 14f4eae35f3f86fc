#include <random>
#include <string>

#include <gtest/gtest.h>

#include "coalescer/http/request_reader.h"

namespace thaw::coalescer {
namespace {

TEST(RequestReader, StopsAfterTheHead) {
  RequestReader reader({});
  std::string bytes =
      "POST /a?q=1 HTTP/1.1\r\nContent-Length: 3\r\nAuthorization: Bearer k\r\n\r\nabcGET";
  EXPECT_EQ(reader.feed(bytes), RequestReader::State::kBody);
  EXPECT_EQ(reader.head().method, "POST");
  EXPECT_EQ(reader.head().path, "/a");
  EXPECT_EQ(reader.head().authorization, "Bearer k");
  EXPECT_EQ(reader.head().content_length, 3U);
  EXPECT_TRUE(reader.head().keep_alive);
  EXPECT_EQ(reader.feed(bytes), RequestReader::State::kDone);
  EXPECT_EQ(reader.take_body(), "abc");
  EXPECT_EQ(bytes, "GET");
}

TEST(RequestReader, AnyCutGivesTheSame) {
  constexpr unsigned kSeed = 3;
  SCOPED_TRACE("seed " + std::to_string(kSeed));
  std::mt19937 random(kSeed);
  const std::string chunked =
      "POST /p HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
      "3\r\nabc\r\n10;ext=1\r\n0123456789abcdef\r\n0\r\nTrailer: t\r\n\r\n";
  const std::string whole = chunked + "GET /next HTTP/1.1\r\nHost: x\r\n\r\n";
  for (int round = 0; round < 500; ++round) {
    std::string bytes;
    std::size_t at = 0;
    const auto read_one = [&](RequestReader& reader) {
      for (;;) {
        const auto state = reader.feed(bytes);
        if (state == RequestReader::State::kDone || state == RequestReader::State::kFailed) return;
        if (state == RequestReader::State::kBody && !reader.head().has_body) continue;
        if (at == whole.size()) return;
        const std::size_t count = std::min<std::size_t>(1 + random() % 20, whole.size() - at);
        bytes += whole.substr(at, count);
        at += count;
      }
    };
    RequestReader first({});
    read_one(first);
    ASSERT_EQ(first.state(), RequestReader::State::kDone) << first.error().message;
    ASSERT_EQ(first.take_body(), "abc0123456789abcdef");
    RequestReader second({});
    read_one(second);
    ASSERT_EQ(second.state(), RequestReader::State::kDone);
    ASSERT_EQ(second.head().path, "/next");
  }
}

TEST(RequestReader, BoundsWhatItKeeps) {
  RequestReader reader({});
  std::string bytes = "GET / HTTP/1.1\r\nX: ";
  std::size_t most = 0;
  for (int i = 0; i < 100 && reader.state() == RequestReader::State::kHead; ++i) {
    bytes += std::string(4096, 'x');
    reader.feed(bytes);
    most = std::max(most, bytes.size());
  }
  EXPECT_EQ(reader.state(), RequestReader::State::kFailed);
  EXPECT_EQ(reader.error().status, 431);
  EXPECT_LT(most, 64U << 10);
}

TEST(RequestReader, RandomBytesNeverCrash) {
  constexpr unsigned kSeed = 11;
  SCOPED_TRACE("seed " + std::to_string(kSeed));
  std::mt19937 random(kSeed);
  const std::string good =
      "POST /v1/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
  for (int round = 0; round < 20000; ++round) {
    std::string bytes = good;
    for (int edits = 0; edits < 3; ++edits)
      bytes[random() % bytes.size()] = static_cast<char>(random());
    RequestReader reader({});
    reader.feed(bytes);
    reader.feed(bytes);
    if (reader.state() == RequestReader::State::kFailed) {
      ASSERT_GE(reader.error().status, 400);
    }
  }
}

}  // namespace
}  // namespace thaw::coalescer
