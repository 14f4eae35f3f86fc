#include "kvsnap/arena_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <optional>

namespace thaw::kvsnap {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

std::size_t round_up(std::size_t size_bytes, std::size_t unit) {
  return (size_bytes + unit - 1) / unit * unit;
}

UniqueFd sized_memfd(std::size_t size_bytes, unsigned flags) {
  UniqueFd fd(::memfd_create("thaw-arena", MFD_CLOEXEC | flags));
  if (fd && ::ftruncate(fd.get(), static_cast<off_t>(size_bytes)) != 0) {
    const int error_number = errno;
    fd.reset();
    errno = error_number;
  }
  return fd;
}

/// The first huge page boundary of a range of `size_bytes` that nothing was mapped to a moment ago;
/// nothing, with errno set, where the address space has none.
std::optional<std::byte*> free_huge_boundary(std::size_t size_bytes) {
  const std::size_t padded = size_bytes + kHugePage;
  void* const found = ::mmap(nullptr, padded, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (found == MAP_FAILED) return std::nullopt;
  ::munmap(found, padded);
  const auto address = reinterpret_cast<std::uintptr_t>(found);
  return static_cast<std::byte*>(found) + (round_up(address, kHugePage) - address);
}

std::string mebibytes(std::size_t size_bytes) {
  return std::to_string(size_bytes >> 20) + " MiB";
}

}  // namespace

Result<Mapping> map_on_huge_boundary(int fd, std::size_t size_bytes, MapAccess access) {
  const int protection = access == MapAccess::kReadOnly ? PROT_READ : PROT_READ | PROT_WRITE;
  const auto wrong = [&](const char* what) {
    return io_error("cannot " + std::string(what) + " " + std::to_string(size_bytes) +
                        " bytes of shared memory",
                    errno);
  };
  // The range is free when it is asked for, and no longer ours: another thread may take it first.
  // MAP_FIXED over a reservation that we keep would not do. Where such a call fails (no huge pages
  // left), the kernel has unmapped the reservation already, another thread's memory may lie there,
  // and giving the reservation back would take that thread's memory away.
  constexpr int kTries = 16;
  for (int i = 0; i < kTries; ++i) {
    const auto aligned = free_huge_boundary(size_bytes);
    if (!aligned) return wrong("find addresses for");
    void* const data =
        ::mmap(*aligned, size_bytes, protection, MAP_SHARED | MAP_FIXED_NOREPLACE, fd, 0);
    if (data != MAP_FAILED) return Mapping(static_cast<std::byte*>(data), size_bytes);
    if (errno != EEXIST) return wrong("map");
  }
  void* const data = ::mmap(nullptr, size_bytes, protection, MAP_SHARED, fd, 0);
  if (data == MAP_FAILED) return wrong("map");
  return Mapping(static_cast<std::byte*>(data), size_bytes);
}

Result<ArenaMemory> create_arena_memory(std::size_t size_bytes) {
  if (size_bytes == 0) {
    return make_error(Errc::kInvalidArgument, "the snapshot arena has size 0; give it some bytes");
  }
  ArenaMemory memory;
  // Mapping huge pages reserves them, so a success here cannot turn into a SIGBUS later.
  const std::size_t huge_size = round_up(size_bytes, kHugePage);
  memory.fd = sized_memfd(huge_size, MFD_HUGETLB);
  if (memory.fd) {
    if (auto mapping = map_on_huge_boundary(memory.fd.get(), huge_size)) {
      memory.mapping = std::move(*mapping);
      memory.description = mebibytes(huge_size) + " in reserved 2 MiB pages";
      return memory;
    }
  }
  memory.fd = sized_memfd(size_bytes, 0);
  if (!memory.fd) {
    return io_error("cannot create " + std::to_string(size_bytes) + " bytes of shared memory",
                    errno);
  }
  auto mapping = map_on_huge_boundary(memory.fd.get(), size_bytes);
  if (!mapping) return mapping.error();
  memory.mapping = std::move(*mapping);
  const bool advised = ::madvise(memory.mapping.data(), size_bytes, MADV_HUGEPAGE) == 0;
  memory.description = mebibytes(size_bytes) + " in 4 KiB pages" +
                       (advised ? ", huge where the kernel allows it" : "") +
                       " (vm.nr_hugepages=" + std::to_string(huge_size / kHugePage) +
                       " would reserve 2 MiB ones)";
  return memory;
}

Result<ArenaView> ArenaView::map(int fd) {
  const Result<std::size_t> size = fd_size_bytes(fd);
  if (!size) return size.error();
  if (*size == 0) return make_error(Errc::kInvalidArgument, "the snapshot arena has size 0");
  auto mapping = map_on_huge_boundary(fd, *size);
  if (!mapping) return mapping.error();
  // Advice only: without it the kernel falls back to small pages.
  (void)::madvise(mapping->data(), *size, MADV_HUGEPAGE);
  return ArenaView(std::move(*mapping));
}

}  // namespace thaw::kvsnap
