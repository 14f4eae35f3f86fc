#include "kvsnap/page_warmer.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <span>
#include <stop_token>
#include <utility>

#include "engine/base/log.h"
#include "engine/base/memory_map.h"
#include "kvsnap/arena_memory.h"

// Newer than the C library of Debian 12; the kernel says EINVAL where it does not know them.
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

namespace thaw::kvsnap {
namespace {

constexpr std::size_t kStepBytes = std::size_t{2} << 20;  // a huge page

void warm(const std::stop_token& stop, std::span<std::byte> memory) {
  // Of this thread only (Linux); failing to be modest is no reason not to work.
  (void)::setpriority(PRIO_PROCESS, static_cast<id_t>(::gettid()), 19);
  std::size_t warm_bytes = 0;
  std::size_t huge_bytes = 0;
  while (warm_bytes < memory.size() && !stop.stop_requested()) {
    std::byte* step = memory.data() + warm_bytes;
    const std::size_t size = std::min(kStepBytes, memory.size() - warm_bytes);
    if (::madvise(step, size, MADV_POPULATE_WRITE) != 0) break;
    if (size == kStepBytes && ::madvise(step, size, MADV_COLLAPSE) == 0) huge_bytes += size;
    warm_bytes += size;
  }
  logger("pages")->info("warm_mib={} of_mib={} huge_mib={}", warm_bytes >> 20, memory.size() >> 20,
                        huge_bytes >> 20);
}

}  // namespace

Result<PageWarmer> PageWarmer::start(int fd) {
  const auto size = fd_size_bytes(fd);
  if (!size) return size.error();
  auto mapping = map_on_huge_boundary(fd, *size);
  if (!mapping) return mapping.error();
  PageWarmer warmer;
  warmer.thread_ = std::jthread(
      [memory = std::move(*mapping)](const std::stop_token& stop) { warm(stop, memory.bytes()); });
  return warmer;
}

void PageWarmer::wait() {
  if (thread_.joinable()) thread_.join();
}

}  // namespace thaw::kvsnap
