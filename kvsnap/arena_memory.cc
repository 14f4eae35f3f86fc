#include "kvsnap/arena_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>

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

std::string mebibytes(std::size_t size_bytes) {
  return std::to_string(size_bytes >> 20) + " MiB";
}

}  // namespace

Result<Mapping> map_on_huge_boundary(int fd, std::size_t size_bytes, MapAccess access) {
  const std::size_t padded = size_bytes + kHugePage;
  void* reserved = ::mmap(nullptr, padded, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (reserved == MAP_FAILED) {
    return io_error("cannot reserve " + std::to_string(padded) + " bytes of address space", errno);
  }
  auto* start = static_cast<std::byte*>(reserved);
  const std::size_t head = round_up(reinterpret_cast<std::uintptr_t>(start), kHugePage) -
                           reinterpret_cast<std::uintptr_t>(start);
  const int protection = access == MapAccess::kReadOnly ? PROT_READ : PROT_READ | PROT_WRITE;
  void* data = ::mmap(start + head, size_bytes, protection, MAP_SHARED | MAP_FIXED, fd, 0);
  if (data == MAP_FAILED) {
    const int error_number = errno;
    ::munmap(start, padded);
    return io_error("cannot map " + std::to_string(size_bytes) + " bytes of shared memory",
                    error_number);
  }
  if (head > 0) ::munmap(start, head);
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  const std::size_t end = head + round_up(size_bytes, page);
  if (end < padded) ::munmap(start + end, padded - end);
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
