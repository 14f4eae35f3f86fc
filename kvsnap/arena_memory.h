#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "engine/base/memory_map.h"
#include "engine/base/result.h"
#include "engine/base/unique_fd.h"
#include "kvsnap/manifest.h"

namespace thaw::kvsnap {

/// The memory behind an arena: a memfd and this process's mapping of it, on a 2 MiB boundary.
struct ArenaMemory {
  UniqueFd fd;
  Mapping mapping;
  std::string description;  ///< size and page policy, for the log
};

/// Reserved huge pages where the system has enough of them, else 4 KiB pages that the kernel may
/// make huge. Errors: kInvalidArgument for size 0, kIo.
Result<ArenaMemory> create_arena_memory(std::size_t size_bytes);

/// Maps `size_bytes` of shared memory at an address that is a multiple of 2 MiB: the kernel maps a
/// huge page as one only where file offset and address agree. (Where other threads keep taking such
/// addresses first, at any address.) Takes no memory away from other threads, on errors neither.
/// Errors: kIo.
Result<Mapping> map_on_huge_boundary(int fd, std::size_t size_bytes,
                                     MapAccess access = MapAccess::kReadWrite);

/// A worker's mapping of an inherited arena descriptor.
class ArenaView {
 public:
  /// Maps the whole file behind `fd`, which may be closed afterwards.
  static Result<ArenaView> map(int fd);

  std::size_t size_bytes() const { return mapping_.size_bytes(); }
  /// All of it, to be pinned.
  std::span<std::byte> memory() const { return mapping_.bytes(); }
  /// The bytes of an extent. REQUIRES: it lies inside (check_manifest).
  std::span<std::byte> bytes(const Extent& extent) const {
    return mapping_.bytes().subspan(extent.offset, extent.size_bytes);
  }

 private:
  explicit ArenaView(Mapping mapping) : mapping_(std::move(mapping)) {}
  Mapping mapping_;
};

}  // namespace thaw::kvsnap
