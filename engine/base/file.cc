#include "engine/base/file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "engine/base/unique_fd.h"

namespace thaw {

Result<void> write_at(int fd, std::span<const std::byte> data, std::uint64_t offset) {
  while (!data.empty()) {
    const ssize_t written = ::pwrite(fd, data.data(), data.size(), static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) {
      return io_error("cannot write " + std::to_string(data.size()) + " bytes",
                      written < 0 ? errno : ENOSPC);
    }
    data = data.subspan(static_cast<std::size_t>(written));
    offset += static_cast<std::uint64_t>(written);
  }
  return {};
}

Result<void> sync_directory(const std::string& directory) {
  const UniqueFd fd(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd) return io_error("cannot open " + directory, errno);
  if (::fsync(fd.get()) != 0) return io_error("cannot sync " + directory, errno);
  return {};
}

Result<void> replace_file(const std::string& path, std::string_view text) {
  std::string temporary = path + ".XXXXXX";
  const UniqueFd fd(::mkostemp(temporary.data(), O_CLOEXEC));
  if (!fd) return io_error("cannot create " + temporary, errno);
  Result<void> written = write_at(fd.get(), std::as_bytes(std::span(text.data(), text.size())), 0);
  if (written && ::fsync(fd.get()) != 0) written = io_error("cannot sync " + temporary, errno);
  if (written && ::rename(temporary.c_str(), path.c_str()) != 0)
    written = io_error("cannot rename " + temporary, errno);
  if (!written) {
    ::unlink(temporary.c_str());
    return written;
  }
  return sync_directory(std::filesystem::path(path).parent_path().string());
}

}  // namespace thaw
