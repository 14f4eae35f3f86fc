#include <algorithm>
#include <vector>

#include <gtest/gtest.h>

#include "engine/base/crc32c.h"
#include "engine/base/thread_pool.h"
#include "kvsnap/copy_pipeline.h"

namespace thaw::kvsnap {
namespace {

// What launch() copies at once is less than this test's memory, so that there is something to tell.
TEST(CpuCopyPipeline, WholeExtentsAreToldWhileTheOthersAreCopied) {
  constexpr std::size_t kExtents = 3;
  constexpr std::size_t kBytes = std::size_t{12} << 20;
  std::vector<std::byte> from(kExtents * kBytes);
  for (std::size_t i = 0; i < from.size(); i += 61)
    from[i] = static_cast<std::byte>(i);
  std::vector<std::byte> to(from.size());
  std::vector<ExtentCopy> extents(kExtents);
  std::vector<std::uint32_t> expected;
  for (std::size_t i = 0; i < kExtents; ++i) {
    extents[i].pieces.push_back({from.data() + i * kBytes, to.data() + i * kBytes, kBytes});
    expected.push_back(crc32c({from.data() + i * kBytes, kBytes}));
  }
  ThreadPool threads(2);
  const auto pipeline = make_cpu_copy_pipeline(threads);
  const CopyHandle handle = pipeline->launch(CopyDirection::kToArena, extents).value();
  std::size_t told = pipeline->checked(handle).size();
  EXPECT_EQ(told, 1U);
  while (!pipeline->done(handle)) {
    pipeline->advance();
    const auto sums = pipeline->checked(handle);
    ASSERT_GE(sums.size(), told);
    told = sums.size();
    EXPECT_TRUE(std::equal(sums.begin(), sums.end(), expected.begin()));
  }
  EXPECT_EQ(told, kExtents);
  EXPECT_EQ(pipeline->collect(handle).value(), expected);
  EXPECT_TRUE(from == to);

  std::fill(to.begin(), to.end(), std::byte{0});
  const CopyHandle straight = pipeline->launch(CopyDirection::kFromPeer, extents).value();
  EXPECT_TRUE(pipeline->checked(straight).empty());
  EXPECT_TRUE(pipeline->collect(straight).value().empty());
  EXPECT_TRUE(from == to);
}

}  // namespace
}  // namespace thaw::kvsnap
