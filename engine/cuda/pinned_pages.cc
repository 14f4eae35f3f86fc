#include "engine/cuda/pinned_pages.h"

#include <cuda_runtime_api.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "engine/base/error.h"
#include "engine/cuda/check.h"

namespace thaw::cuda {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

/// Mapped on the boundary of a huge page, or null.
std::byte* map_aligned(std::size_t bytes) {
  void* const mapped = ::mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  auto* const first = static_cast<std::byte*>(mapped);
  const std::size_t skipped =
      (kHugePage - reinterpret_cast<std::uintptr_t>(first) % kHugePage) % kHugePage;
  if (skipped > 0) ::munmap(first, skipped);
  ::munmap(first + skipped + bytes, kHugePage - skipped);
  return first + skipped;
}

/// Has the kernel give all pages, on several cores: it clears them first, one after the other if
/// they are asked for by pinning.
void take_pages(std::byte* first, std::size_t bytes) {
  constexpr std::size_t kPage = 4096;
  constexpr std::size_t kMostThreads = 16;
  constexpr std::size_t kShare = 2 * kHugePage;  // of a thread, at least: less than starting it
  const std::size_t threads =
      std::min({kMostThreads, std::size_t{std::max(1U, std::thread::hardware_concurrency())},
                bytes / kShare + 1});
  const std::size_t share = (bytes / threads + kHugePage - 1) / kHugePage * kHugePage;
  const auto take = [=](std::size_t begin) {
    for (std::size_t at = begin; at < std::min(bytes, begin + share); at += kPage)
      *reinterpret_cast<volatile std::byte*>(first + at) = std::byte{0};
  };
  std::vector<std::jthread> running;
  for (std::size_t begin = share; begin < bytes; begin += share) {
    try {
      running.emplace_back(take, begin);
    } catch (const std::system_error&) {  // no more threads
      take(begin);
    }
  }
  take(0);
}

}  // namespace

PinnedPages::PinnedPages(std::size_t bytes)
    : bytes_((bytes + kHugePage - 1) / kHugePage * kHugePage) {
  data_ = map_aligned(bytes_);
  if (data_ == nullptr) {
    throw Exception(make_error(Errc::kResourceExhausted,
                               "cannot map " + std::to_string(bytes_) + " bytes to be pinned"));
  }
  (void)::madvise(data_, bytes_, MADV_HUGEPAGE);  // else small ones do
  take_pages(data_, bytes_);
  const cudaError_t registered = cudaHostRegister(data_, bytes_, cudaHostRegisterPortable);
  if (registered != cudaSuccess) {
    ::munmap(data_, bytes_);
    data_ = nullptr;
    check(registered, "pin memory");
  }
}

PinnedPages::~PinnedPages() {
  if (data_ == nullptr) return;
  check_noexcept(cudaHostUnregister(data_), "pinned memory");
  ::munmap(data_, bytes_);
}

}  // namespace thaw::cuda
