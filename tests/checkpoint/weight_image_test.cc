#include "engine/checkpoint/weight_image.h"

#include <algorithm>
#include <cstring>

#include <gtest/gtest.h>

#include "engine/base/crc32c.h"
#include "engine/base/hash.h"

namespace thaw::checkpoint {
namespace {

std::vector<std::byte> sample_image(const Hash128& source = {}) {
  WeightImagePlanner planner;
  planner.add("token_embedding", 6, 100, 64, 7000);
  planner.add("output_norm", 0, 1, 64, 256);
  planner.add("empty", 0, 0, 0, 0);
  planner.finish(R"({"family":"llama"})", source);
  std::vector<std::byte> image(planner.total_bytes());
  for (std::size_t i = 0; i < planner.entries().size(); ++i) {
    const WeightEntry& entry = planner.entries()[i];
    const auto data = std::span(image).subspan(entry.offset, entry.size_bytes);
    std::ranges::fill(data, static_cast<std::byte>(entry.packing));
    planner.set_checksum(i, crc32c(data));
  }
  const std::string header = planner.header();
  std::memcpy(image.data(), header.data(), header.size());
  return image;
}

TEST(WeightImage, ReadsBackWhatWasPlanned) {
  const auto image = sample_image();
  const WeightImageView view = WeightImageView::open(image).value();
  EXPECT_EQ(view.document(), R"({"family":"llama"})");
  ASSERT_EQ(view.entries().size(), 3u);
  const WeightEntry* entry = view.find("token_embedding");
  ASSERT_NE(entry, nullptr);
  EXPECT_EQ(entry->packing, 6u);
  EXPECT_EQ(entry->rows, 100);
  EXPECT_EQ(entry->cols, 64);
  EXPECT_EQ(entry->offset % kWeightAlignment, 0u);
  EXPECT_EQ(view.data(*entry).size(), 7000u);
  EXPECT_EQ(view.data(*entry)[6999], std::byte{6});
  EXPECT_EQ(view.find("head"), nullptr);
}

TEST(WeightImage, DigestNamesTableDocumentAndSource) {
  const auto image = sample_image();
  const auto again = sample_image();
  Hash128 other;
  other.bytes[0] = 1;
  const auto changed = sample_image(other);
  EXPECT_EQ(WeightImageView::open(image).value().digest(),
            WeightImageView::open(again).value().digest());
  EXPECT_NE(WeightImageView::open(image).value().digest(),
            WeightImageView::open(changed).value().digest());
}

TEST(WeightImage, TruncationAndDamageAreErrors) {
  const auto image = sample_image();
  // The last entry has no bytes, so the last byte that matters is the norm's.
  const std::size_t needed = image.size() - kWeightAlignment + 256;
  for (const std::size_t size : {std::size_t{0}, std::size_t{15}, std::size_t{31}, std::size_t{32},
                                 std::size_t{100}, kWeightAlignment, needed - 1}) {
    const auto view = WeightImageView::open(std::span(image).first(size));
    ASSERT_FALSE(view) << size;
    EXPECT_EQ(view.error().code, Errc::kDataLoss);
  }
  const std::size_t header_bytes = WeightImageView::open(image).value().header().size();
  EXPECT_GT(header_bytes, 32u);
  for (std::size_t at = 0; at < header_bytes; ++at) {
    for (const int bit : {0, 3, 7}) {
      auto damaged = image;
      damaged[at] ^= static_cast<std::byte>(1 << bit);
      EXPECT_FALSE(WeightImageView::open(damaged)) << "byte " << at << ", bit " << bit;
    }
  }
}

// A table with a digest that is right can still lie: whoever wrote it knew the format.
TEST(WeightImage, TablesThatLieAreErrors) {
  const auto with_table = [](const std::string& table) {
    const std::uint64_t size = table.size();
    const Hash128 digest = hash_text(table);
    std::string text = "THAWIMG2";
    text.append(reinterpret_cast<const char*>(&size), sizeof size);
    text.append(reinterpret_cast<const char*>(digest.bytes.data()), digest.bytes.size());
    text += table;
    text.resize(3 * kWeightAlignment);
    const auto bytes = std::as_bytes(std::span(text.data(), text.size()));
    return std::vector<std::byte>(bytes.begin(), bytes.end());
  };
  const auto opens = [&](const std::string& entries) {
    const auto image = with_table(R"({"document":"","source":"","tensors":[)" + entries + "]}");
    return WeightImageView::open(image).has_value();
  };
  EXPECT_TRUE(opens(R"(["a",0,1,1,4096,4096,"00000000"])"));
  EXPECT_FALSE(opens(R"(["a",0,1,1,4096,4097,"00000000"])")) << "past the end";
  EXPECT_FALSE(opens(R"(["a",0,1,1,8192,1,"00000000"])")) << "past the end";
  EXPECT_FALSE(opens(R"(["a",0,1,1,18446744073709547520,4096,"00000000"])")) << "overflow";
  EXPECT_FALSE(opens(R"(["a",0,1,1,100,4,"00000000"])")) << "unaligned";
  EXPECT_FALSE(opens(R"(["a",0,1,1,0,4,"0000000"])")) << "a short checksum";
  EXPECT_FALSE(opens(R"(["a",0,1,1,0,4,"0000000x"])")) << "no checksum";
  EXPECT_FALSE(opens(R"(["a",0,1,1,0,4])")) << "no checksum";
  EXPECT_FALSE(opens(R"(["a",0,1,1,0,4,"00000000"],["a",0,1,1,0,4,"00000000"])")) << "twice";
  EXPECT_FALSE(opens(R"([1,0,1,1,0,4,"00000000"])"));
  EXPECT_FALSE(WeightImageView::open(with_table("[]")));
  EXPECT_FALSE(WeightImageView::open(with_table("not JSON")));
}

TEST(WeightImage, VerifyFindsEveryDamagedByte) {
  const auto image = sample_image();
  ThreadPool threads(2);
  EXPECT_TRUE(WeightImageView::open(image).value().verify(threads));
  const WeightEntry entry = *WeightImageView::open(image).value().find("token_embedding");
  for (std::size_t at = 0; at < entry.size_bytes; ++at) {
    auto damaged = image;
    damaged[entry.offset + at] ^= std::byte{1};
    const auto verified = WeightImageView::open(damaged).value().verify(threads);
    ASSERT_FALSE(verified) << at;
    EXPECT_EQ(verified.error().code, Errc::kDataLoss);
    EXPECT_NE(verified.error().message.find("token_embedding"), std::string::npos);
  }
}

}  // namespace
}  // namespace thaw::checkpoint
