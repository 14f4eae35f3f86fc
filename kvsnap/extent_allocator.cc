#include "kvsnap/extent_allocator.h"

#include <algorithm>
#include <iterator>
#include <string>

namespace thaw::kvsnap {

ExtentAllocator::ExtentAllocator(std::uint64_t size_bytes)
    : size_(size_bytes / kAlignment * kAlignment), free_bytes_(size_) {
  if (size_ > 0) free_.emplace(0, size_);
}

Extent ExtentAllocator::take(std::map<std::uint64_t, std::uint64_t>::iterator range,
                             std::uint64_t size_bytes) {
  const Extent extent{range->first, size_bytes, 0};
  const std::uint64_t reserved = reserved_bytes(extent);
  const std::uint64_t rest = range->second - reserved;
  const auto hint = free_.erase(range);
  if (rest > 0) free_.emplace_hint(hint, extent.offset + reserved, rest);
  free_bytes_ -= reserved;
  return extent;
}

std::vector<Extent> ExtentAllocator::allocate(std::uint64_t num_units, std::uint64_t unit_bytes) {
  if (num_units == 0 || unit_bytes == 0 || num_units > free_bytes_ / unit_bytes) return {};
  const std::uint64_t wanted = num_units * unit_bytes;
  // Ranges are multiples of the alignment, so a payload that fits also fits rounded up.
  const auto whole = std::find_if(free_.begin(), free_.end(),
                                  [&](const auto& range) { return range.second >= wanted; });
  if (whole != free_.end()) return {take(whole, wanted)};

  std::uint64_t available = 0;
  for (const auto& [offset, size] : free_)
    available += size / unit_bytes;
  if (available < num_units) return {};

  std::vector<Extent> extents;
  for (auto range = free_.begin(); num_units > 0;) {
    const auto next = std::next(range);
    const std::uint64_t units = std::min(num_units, range->second / unit_bytes);
    if (units > 0) {
      extents.push_back(take(range, units * unit_bytes));
      num_units -= units;
    }
    range = next;
  }
  return extents;
}

void ExtentAllocator::release(const Extent& extent) {
  const std::uint64_t reserved = reserved_bytes(extent);
  const auto next = free_.lower_bound(extent.offset);
  const bool meets_next = next != free_.end() && extent.offset + reserved > next->first;
  const bool meets_previous =
      next != free_.begin() && std::prev(next)->first + std::prev(next)->second > extent.offset;
  if (extent.size_bytes == 0 || extent.size_bytes > size_ || extent.offset % kAlignment != 0 ||
      extent.offset > size_ - reserved || meets_next || meets_previous) {
    throw Exception(make_error(Errc::kInternal, "extent at " + std::to_string(extent.offset) +
                                                    " of " + std::to_string(extent.size_bytes) +
                                                    " bytes was released but is not allocated"));
  }
  std::uint64_t offset = extent.offset;
  std::uint64_t size = reserved;
  if (next != free_.end() && offset + size == next->first) size += next->second;
  if (next != free_.begin()) {
    const auto previous = std::prev(next);
    if (previous->first + previous->second == offset) {
      offset = previous->first;
      size += previous->second;
      free_.erase(previous);
    }
  }
  if (next != free_.end() && next->first < offset + size) free_.erase(next);
  free_.emplace(offset, size);
  free_bytes_ += reserved;
}

}  // namespace thaw::kvsnap
