#include "engine/checkpoint/weight_image.h"

#include <cstring>
#include <random>

#include <gtest/gtest.h>

namespace thaw::checkpoint {
namespace {

std::vector<std::byte> sample_image(const Hash128& source = {}) {
  WeightImagePlanner planner;
  planner.add("token_embedding", 6, 100, 64, 7000);
  planner.add("output_norm", 0, 1, 64, 256);
  planner.add("empty", 0, 0, 0, 0);
  planner.finish(R"({"family":"llama"})", source);
  std::vector<std::byte> image(planner.total_bytes());
  planner.write_header(image);
  for (const WeightEntry& entry : planner.entries())
    std::memset(image.data() + entry.offset, static_cast<int>(entry.packing), entry.size_bytes);
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
  for (const std::size_t size : {std::size_t{0}, std::size_t{15}, std::size_t{16}, std::size_t{100},
                                 kWeightAlignment, needed - 1}) {
    const auto view = WeightImageView::open(std::span(image).first(size));
    ASSERT_FALSE(view) << size;
    EXPECT_EQ(view.error().code, Errc::kDataLoss);
  }
  for (unsigned seed = 0; seed < 3000; ++seed) {
    std::mt19937 random(seed);
    auto damaged = image;
    for (int i = 0; i < 3; ++i)
      damaged[random() % 320] = static_cast<std::byte>(random());
    const auto view = WeightImageView::open(damaged);
    if (!view) continue;
    for (const WeightEntry& entry : view->entries())
      ASSERT_LE(entry.offset + entry.size_bytes, damaged.size()) << "seed " << seed;
  }
}

}  // namespace
}  // namespace thaw::checkpoint
