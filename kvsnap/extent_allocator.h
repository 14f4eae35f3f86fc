#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "engine/base/result.h"
#include "kvsnap/manifest.h"

namespace thaw::kvsnap {

/// Free space of a byte range: first fit, coalescing. Extents start on multiples of `kAlignment`
/// (a page: what a device can register and a copy engine likes); neighbours are always merged, so
/// equal sets of extents leave equal free lists, whatever the order they came in. Not thread-safe.
class ExtentAllocator {
 public:
  static constexpr std::uint64_t kAlignment = 4096;

  /// `size_bytes` is rounded down to the alignment.
  explicit ExtentAllocator(std::uint64_t size_bytes);

  /// Extents of `num_units` units of `unit_bytes` in total, whole units in each: one where a free
  /// range is long enough, else as many as the free ranges in order of address give. Empty, with
  /// nothing changed, where there is not enough. REQUIRES: both are positive.
  std::vector<Extent> allocate(std::uint64_t num_units, std::uint64_t unit_bytes);

  /// Gives back what allocate() returned, in any order. Throws kInternal for a range that is not
  /// allocated as a whole.
  void release(const Extent& extent);

  std::uint64_t size_bytes() const { return size_; }
  std::uint64_t free_bytes() const { return free_bytes_; }
  const std::map<std::uint64_t, std::uint64_t>& free_ranges() const { return free_; }

  /// Bytes an extent takes from the free space.
  static std::uint64_t reserved_bytes(const Extent& extent) {
    return (extent.size_bytes + kAlignment - 1) / kAlignment * kAlignment;
  }

 private:
  Extent take(std::map<std::uint64_t, std::uint64_t>::iterator range, std::uint64_t size_bytes);

  std::uint64_t size_ = 0;
  std::uint64_t free_bytes_ = 0;
  std::map<std::uint64_t, std::uint64_t> free_;  ///< offset -> size, never adjacent
};

}  // namespace thaw::kvsnap
