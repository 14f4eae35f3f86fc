#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>
#include <span>

namespace thaw::kvsnap {

/// Memory on a page boundary, as O_DIRECT wants it. Its size is rounded up to whole pages; the
/// content starts undefined. Throws std::bad_alloc. Move-only.
class AlignedBuffer {
 public:
  static constexpr std::size_t kAlignment = 4096;

  explicit AlignedBuffer(std::size_t size_bytes)
      : size_((size_bytes + kAlignment - 1) / kAlignment * kAlignment),
        data_(static_cast<std::byte*>(std::aligned_alloc(kAlignment, size_)), &std::free) {
    if (size_ > 0 && data_ == nullptr) throw std::bad_alloc();
  }

  std::span<std::byte> bytes() const { return {data_.get(), size_}; }

 private:
  std::size_t size_;
  std::unique_ptr<std::byte, decltype(&std::free)> data_;
};

}  // namespace thaw::kvsnap
