#include "kvsnap/extent_allocator.h"

#include <algorithm>
#include <random>
#include <vector>

#include <gtest/gtest.h>

namespace thaw::kvsnap {
namespace {

constexpr std::uint64_t kPage = ExtentAllocator::kAlignment;

TEST(ExtentAllocator, FirstFitAndCoalescing) {
  ExtentAllocator allocator(16 * kPage + 100);
  EXPECT_EQ(allocator.size_bytes(), 16 * kPage);
  const auto a = allocator.allocate(1, kPage);
  const auto b = allocator.allocate(2, kPage + 1);  // three pages
  const auto c = allocator.allocate(1, kPage);
  ASSERT_EQ(b.size(), 1U);
  EXPECT_EQ(b[0].offset, kPage);
  EXPECT_EQ(b[0].size_bytes, 2 * kPage + 2);
  EXPECT_EQ(c[0].offset, 4 * kPage);
  allocator.release(b[0]);
  EXPECT_EQ(allocator.allocate(1, 100)[0].offset, kPage);
  allocator.release({kPage, 100, 0});
  allocator.release(a[0]);
  allocator.release(c[0]);
  ASSERT_EQ(allocator.free_ranges().size(), 1U);
  EXPECT_EQ(allocator.free_bytes(), 16 * kPage);
}

TEST(ExtentAllocator, SplitsOverFragmentsInWholeUnits) {
  ExtentAllocator allocator(10 * kPage);
  std::vector<Extent> pages;
  for (int i = 0; i < 10; ++i)
    pages.push_back(allocator.allocate(1, kPage)[0]);
  EXPECT_TRUE(allocator.allocate(1, 1).empty());
  for (int i : {0, 1, 2, 4, 6, 7, 9})
    allocator.release(pages[static_cast<std::size_t>(i)]);
  // Units of a page and a half: two in pages 0-2, one in 6-7, none in 4 or 9.
  EXPECT_TRUE(allocator.allocate(4, kPage * 3 / 2).empty());
  EXPECT_EQ(allocator.free_bytes(), 7 * kPage);
  const auto extents = allocator.allocate(3, kPage * 3 / 2);
  ASSERT_EQ(extents.size(), 2U);
  EXPECT_EQ(extents[0].offset, 0U);
  EXPECT_EQ(extents[0].size_bytes, 3 * kPage);
  EXPECT_EQ(extents[1].offset, 6 * kPage);
  EXPECT_EQ(extents[1].size_bytes, kPage * 3 / 2);
}

TEST(ExtentAllocator, RefusesWhatIsNotAllocated) {
  ExtentAllocator allocator(4 * kPage);
  EXPECT_THROW(allocator.release({0, kPage, 0}), Exception);
  const auto a = allocator.allocate(1, 2 * kPage);
  EXPECT_THROW(allocator.release({kPage, 2 * kPage, 0}), Exception);  // half of it is free
  EXPECT_THROW(allocator.release({7, 10, 0}), Exception);
  EXPECT_THROW(allocator.release({0, 0, 0}), Exception);
  EXPECT_THROW(allocator.release({4 * kPage, kPage, 0}), Exception);
  EXPECT_THROW(allocator.release({0, ~std::uint64_t{0}, 0}), Exception);
  allocator.release(a[0]);
  EXPECT_THROW(allocator.release(a[0]), Exception);
  EXPECT_EQ(allocator.free_bytes(), 4 * kPage);
}

// A page map is the model: each page is free or belongs to one extent.
TEST(ExtentAllocator, RandomOperationsAgreeWithAPageMap) {
  for (unsigned seed = 1; seed <= 40; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937 random(seed);
    constexpr std::size_t kPages = 64;
    ExtentAllocator allocator(kPages * kPage);
    std::vector<bool> used(kPages, false);
    std::vector<std::vector<Extent>> live;

    const auto free_runs = [&] {
      std::vector<std::size_t> runs;
      std::size_t run = 0;
      for (std::size_t i = 0; i <= kPages; ++i) {
        if (i < kPages && !used[i]) {
          ++run;
        } else {
          if (run > 0) runs.push_back(run);
          run = 0;
        }
      }
      return runs;
    };
    const auto mark = [&](const Extent& extent, bool value) {
      for (std::uint64_t at = 0; at < extent.size_bytes; at += kPage) {
        const std::size_t page = (extent.offset + at) / kPage;
        ASSERT_LT(page, kPages);
        ASSERT_NE(used[page], value);
        used[page] = value;
      }
    };
    for (int step = 0; step < 400; ++step) {
      if (random() % 5 < 3) {
        const std::uint64_t units = 1 + random() % 6;
        const std::uint64_t unit_bytes = 1 + random() % (3 * kPage);
        std::uint64_t available = 0;
        bool fits_whole = false;
        for (std::size_t run : free_runs()) {
          available += run * kPage / unit_bytes;
          fits_whole = fits_whole || run * kPage >= units * unit_bytes;
        }
        const auto extents = allocator.allocate(units, unit_bytes);
        ASSERT_EQ(extents.empty(), available < units);
        if (extents.empty()) continue;
        ASSERT_TRUE(!fits_whole || extents.size() == 1);
        std::uint64_t total = 0;
        for (const Extent& extent : extents) {
          ASSERT_EQ(extent.offset % kPage, 0U);
          ASSERT_EQ(extent.size_bytes % unit_bytes, 0U);
          total += extent.size_bytes;
          mark(extent, true);
        }
        ASSERT_EQ(total, units * unit_bytes);
        live.push_back(extents);
      } else if (!live.empty()) {
        std::swap(live[random() % live.size()], live.back());
        std::ranges::shuffle(live.back(), random);
        for (const Extent& extent : live.back()) {
          allocator.release(extent);
          mark(extent, false);
        }
        live.pop_back();
      }
      const auto runs = free_runs();
      ASSERT_EQ(allocator.free_ranges().size(), runs.size());
      std::size_t i = 0;
      for (const auto& [offset, size] : allocator.free_ranges())
        ASSERT_EQ(size, runs[i++] * kPage);
    }
  }
}

}  // namespace
}  // namespace thaw::kvsnap
