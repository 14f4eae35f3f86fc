#include "engine/base/memory_map.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <utility>

namespace thaw {

Mapping::Mapping(Mapping&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

Mapping::~Mapping() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

Result<Mapping> map_fd(int fd, std::size_t size_bytes, MapAccess access) {
  if (size_bytes == 0) return Mapping();
  const int protection = access == MapAccess::kReadOnly ? PROT_READ : PROT_READ | PROT_WRITE;
  void* data = ::mmap(nullptr, size_bytes, protection, MAP_SHARED, fd, 0);
  if (data == MAP_FAILED) {
    return io_error("cannot map " + std::to_string(size_bytes) + " bytes", errno);
  }
  return Mapping(static_cast<std::byte*>(data), size_bytes);
}

Result<Mapping> map_file(const std::string& path) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return io_error("cannot open " + path, errno);
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) return io_error("cannot stat " + path, errno);
  if (!S_ISREG(info.st_mode)) {
    return make_error(Errc::kInvalidArgument, path + " is not a regular file");
  }
  return map_fd(fd.get(), static_cast<std::size_t>(info.st_size), MapAccess::kReadOnly);
}

void drop_pages(std::span<const std::byte> part) {
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  const std::size_t head = (page - reinterpret_cast<std::uintptr_t>(part.data()) % page) % page;
  if (part.size() < head + page) return;
  // Of a shared mapping of a file nothing is lost by this.
  auto* first = const_cast<std::byte*>(part.data()) + head;
  ::madvise(first, (part.size() - head) / page * page, MADV_DONTNEED);
}

Result<UniqueFd> create_memfd(const std::string& name, std::size_t size_bytes) {
  UniqueFd fd(::memfd_create(name.c_str(), MFD_CLOEXEC));
  if (!fd) return io_error("cannot create shared memory " + name, errno);
  if (::ftruncate(fd.get(), static_cast<off_t>(size_bytes)) != 0) {
    return io_error(
        "cannot size shared memory " + name + " to " + std::to_string(size_bytes) + " bytes",
        errno);
  }
  return fd;
}

Result<std::size_t> fd_size_bytes(int fd) {
  struct stat info {};
  if (::fstat(fd, &info) != 0) return io_error("cannot stat descriptor", errno);
  return static_cast<std::size_t>(info.st_size);
}

}  // namespace thaw
