#pragma once

#include <cstddef>
#include <span>
#include <utility>

#include "engine/base/result.h"

namespace thaw::kvsnap {

/// Mapped memory that the copy engines of every device may use directly, until destruction. Pinning
/// takes all of the range's pages at once and costs by the page: do it once a process (measured
/// rates: docs/architecture.md). Move-only; the memory must stay mapped longer.
class PinnedRange {
 public:
  PinnedRange() = default;
  /// Errors: kResourceExhausted where the system has not enough memory, kCuda.
  static Result<PinnedRange> pin(std::span<std::byte> memory);

  PinnedRange(PinnedRange&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
  PinnedRange& operator=(PinnedRange&& other) noexcept {
    std::swap(data_, other.data_);
    return *this;
  }
  PinnedRange(const PinnedRange&) = delete;
  PinnedRange& operator=(const PinnedRange&) = delete;
  ~PinnedRange();

 private:
  explicit PinnedRange(std::byte* data) : data_(data) {}
  std::byte* data_ = nullptr;
};

}  // namespace thaw::kvsnap
