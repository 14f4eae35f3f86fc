#include "engine/base/thread_pool.h"

#include <atomic>
#include <vector>

#include <gtest/gtest.h>

namespace thaw {
namespace {

TEST(ThreadPool, RunsEveryTaskOnce) {
  for (int threads = 1; threads <= 4; ++threads) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.num_threads(), threads);
    for (int round = 0; round < 200; ++round) {
      std::vector<std::atomic<int>> counts(static_cast<std::size_t>(round % 37));
      pool.parallel_for(static_cast<int>(counts.size()),
                        [&](int task) { counts[static_cast<std::size_t>(task)].fetch_add(1); });
      for (const auto& count : counts)
        ASSERT_EQ(count.load(), 1);
    }
  }
}

}  // namespace
}  // namespace thaw
