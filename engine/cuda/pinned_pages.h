#pragma once

#include <cstddef>
#include <span>
#include <utility>

namespace thaw::cuda {

/// Page-locked host memory for large transfers, in huge pages where the kernel gives them: pinning
/// costs by the page, so that 96 MiB take 4 ms here, with 16 cores, and 64 take 20 in a
/// PinnedBuffer. Uninitialised. Move-only. A copy from or to it may be in flight only while it
/// lives.
class PinnedPages {
 public:
  PinnedPages() = default;
  /// At least `bytes`, which may not be 0. Throws kResourceExhausted where the system has not that
  /// much, kCuda.
  explicit PinnedPages(std::size_t bytes);
  PinnedPages(PinnedPages&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  PinnedPages& operator=(PinnedPages&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  PinnedPages(const PinnedPages&) = delete;
  PinnedPages& operator=(const PinnedPages&) = delete;
  ~PinnedPages();

  std::byte* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return bytes_; }
  std::span<std::byte> span() const noexcept { return {data_, bytes_}; }

 private:
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;  ///< mapped
};

}  // namespace thaw::cuda
