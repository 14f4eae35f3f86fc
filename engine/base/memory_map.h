#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "engine/base/result.h"
#include "engine/base/unique_fd.h"

namespace thaw {

/// A mapped byte range; unmapped on destruction. Move-only.
class Mapping {
 public:
  Mapping() = default;
  Mapping(std::byte* data, std::size_t size_bytes) noexcept : data_(data), size_(size_bytes) {}
  Mapping(Mapping&& other) noexcept;
  Mapping& operator=(Mapping&& other) noexcept;
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping();

  std::byte* data() const noexcept { return data_; }
  std::size_t size_bytes() const noexcept { return size_; }
  std::span<std::byte> bytes() const noexcept { return {data_, size_}; }

 private:
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

enum class MapAccess { kReadOnly, kReadWrite };

/// Maps `size_bytes` of `fd` from its start, MAP_SHARED. The fd may be closed afterwards.
Result<Mapping> map_fd(int fd, std::size_t size_bytes, MapAccess access);

/// Maps a whole regular file read-only. Errors name the path.
Result<Mapping> map_file(const std::string& path);

/// Gives the whole pages of `part` back: they leave this process and come back from the file, as
/// they were, when they are read again. REQUIRES: `part` lies in a mapping of map_file or map_fd.
void drop_pages(std::span<const std::byte> part);

/// An anonymous shared memory file (memfd_create, close-on-exec) of `size_bytes`; pages are taken
/// on first touch. It lives as long as any descriptor or mapping of it does.
Result<UniqueFd> create_memfd(const std::string& name, std::size_t size_bytes);

/// Size of the file behind `fd` in bytes.
Result<std::size_t> fd_size_bytes(int fd);

}  // namespace thaw
