#include "kvsnap/arena_memory.h"

#include <sys/mman.h>

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

namespace thaw::kvsnap {
namespace {

constexpr std::size_t kMebi = std::size_t{1} << 20;

TEST(ArenaMemory, LiesOnAHugePageBoundary) {
  for (const std::size_t size : {std::size_t{4096}, kMebi, 3 * kMebi + 4096}) {
    const auto fd = std::move(create_memfd("boundary", size)).value();
    const auto mapping = std::move(map_on_huge_boundary(fd.get(), size)).value();
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(mapping.data()) % (2 * kMebi), 0) << size;
    EXPECT_EQ(mapping.size_bytes(), size);
  }
}

/// Maps and gives back memory until it is told to stop, and looks whether it is still mapped.
void map_and_look(const std::atomic<bool>& stop, std::atomic<int>& lost) {
  constexpr std::size_t kSize = 4 * kMebi;
  while (!stop) {
    void* const mapped =
        ::mmap(nullptr, kSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) continue;
    std::this_thread::yield();
    // Unlike a write, this tells a hole without dying of it.
    unsigned char resident = 0;
    if (::mincore(mapped, 1, &resident) != 0) ++lost;
    ::munmap(mapped, kSize);
  }
}

TEST(ArenaMemory, AFailedMappingTakesNoMemoryOfOtherThreads) {
  std::atomic<bool> stop{false};
  std::atomic<int> lost{0};
  {
    std::vector<std::jthread> others;
    for (int i = 0; i < 2; ++i)
      others.emplace_back([&] { map_and_look(stop, lost); });
    // On most machines no huge pages are reserved, so that the first mapping of each fails.
    for (int i = 0; i < 2000; ++i)
      ASSERT_TRUE(create_arena_memory(4 * kMebi));
    stop = true;
  }
  EXPECT_EQ(lost, 0);
}

}  // namespace
}  // namespace thaw::kvsnap
