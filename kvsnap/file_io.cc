#include "kvsnap/file_io.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <utility>

#include "engine/base/file.h"
#include "engine/base/unique_fd.h"

namespace thaw::kvsnap {
namespace {

constexpr std::size_t kDirectAlignment = 4096;
constexpr mode_t kNewFileMode = 0666;  // less the umask

/// kIo, and kResourceExhausted where the disk is full.
Error file_error(const std::string& what, int error_number) {
  Error error = io_error(what, error_number);
  if (error_number == ENOSPC || error_number == EDQUOT) error.code = Errc::kResourceExhausted;
  return error;
}

class SystemFile final : public IoFile {
 public:
  SystemFile(UniqueFd fd, std::string path, bool is_direct)
      : fd_(std::move(fd)), path_(std::move(path)), is_direct_(is_direct) {}

  std::size_t alignment() const override { return is_direct_ ? kDirectAlignment : 1; }

  Result<void> write(std::span<const std::byte> data, std::uint64_t offset) override {
    while (!data.empty()) {
      const ssize_t done =
          ::pwrite(fd_.get(), data.data(), data.size(), static_cast<off_t>(offset));
      if (done < 0 && errno == EINTR) continue;
      if (done <= 0) return file_error("cannot write " + path_, done < 0 ? errno : ENOSPC);
      data = data.subspan(static_cast<std::size_t>(done));
      offset += static_cast<std::uint64_t>(done);
    }
    return {};
  }

  Result<std::size_t> read(std::span<std::byte> out, std::uint64_t offset) const override {
    std::size_t total = 0;
    while (total < out.size()) {
      const ssize_t done = ::pread(fd_.get(), out.data() + total, out.size() - total,
                                   static_cast<off_t>(offset + total));
      if (done < 0 && errno == EINTR) continue;
      if (done < 0) return file_error("cannot read " + path_, errno);
      total += static_cast<std::size_t>(done);
      // What ends between two multiples is the end of the file: the next read could not start
      // there.
      if (done == 0 || (is_direct_ && done % kDirectAlignment != 0)) break;
    }
    return total;
  }

  Result<std::uint64_t> size_bytes() const override {
    struct stat info {};
    if (::fstat(fd_.get(), &info) != 0) return file_error("cannot stat " + path_, errno);
    return static_cast<std::uint64_t>(info.st_size);
  }

  Result<std::string> version() const override {
    struct stat info {};
    if (::fstat(fd_.get(), &info) != 0) return file_error("cannot stat " + path_, errno);
    return std::to_string(info.st_ino) + "-" + std::to_string(info.st_size) + "-" +
           std::to_string(info.st_mtim.tv_sec) + "." + std::to_string(info.st_mtim.tv_nsec);
  }

  Result<void> set_size(std::uint64_t size_bytes) override {
    if (::ftruncate(fd_.get(), static_cast<off_t>(size_bytes)) != 0)
      return file_error("cannot size " + path_, errno);
    return {};
  }

  Result<void> sync() override {
    if (::fsync(fd_.get()) != 0) return file_error("cannot sync " + path_, errno);
    return {};
  }

  Result<Mapping> map() const override {
    const auto size = size_bytes();
    if (!size) return size.error();
    auto mapping = map_fd(fd_.get(), static_cast<std::size_t>(*size), MapAccess::kReadOnly);
    if (mapping) return mapping;
    Error error = std::move(mapping).error();
    error.message = path_ + ": " + error.message;
    return error;
  }

  bool share_bytes_of(const IoFile& source) override {
    const auto* file = dynamic_cast<const SystemFile*>(&source);
    return file != nullptr && ::ioctl(fd_.get(), FICLONE, file->fd_.get()) == 0;
  }

 private:
  UniqueFd fd_;
  std::string path_;
  bool is_direct_;
};

class SystemIo final : public FileIo {
 public:
  explicit SystemIo(IoMode mode)
      : is_direct_(mode == IoMode::kDirect), follow_(mode == IoMode::kNoLinks ? O_NOFOLLOW : 0) {}

  Result<std::unique_ptr<IoFile>> create(const std::string& path,
                                         std::uint64_t reserve_bytes) override {
    // Taken over where a process died over it: only who holds the lock of the file that has the
    // name may empty it.
    constexpr int kAttempts = 8;
    for (int attempt = 0; attempt < kAttempts; ++attempt) {
      auto [fd, is_direct] = open_fd(path, O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK);
      if (!fd) return file_error("cannot create " + path, errno);
      if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) break;
      struct stat opened {};
      struct stat named {};
      if (::fstat(fd.get(), &opened) != 0 || ::lstat(path.c_str(), &named) != 0 ||
          opened.st_ino != named.st_ino || opened.st_dev != named.st_dev) {
        continue;  // renamed or removed meanwhile
      }
      if (!S_ISREG(opened.st_mode))
        return make_error(Errc::kInvalidArgument, path + " is not a regular file");
      Result<void> emptied = empty(fd.get(), path, reserve_bytes);
      if (!emptied) {
        ::unlink(path.c_str());
        return std::move(emptied).error();
      }
      return std::unique_ptr<IoFile>(std::make_unique<SystemFile>(std::move(fd), path, is_direct));
    }
    return make_error(Errc::kUnavailable, path + " is being written by another process");
  }

  Result<std::unique_ptr<IoFile>> open(const std::string& path) override {
    auto [fd, is_direct] = open_fd(path, O_RDONLY | O_NONBLOCK | follow_);
    if (!fd && errno == ENOENT) return make_error(Errc::kNotFound, path + ": no such file");
    if (!fd && errno == ELOOP && follow_ != 0) {
      return make_error(
          Errc::kInvalidArgument,
          path + " is a symbolic link, which may lead anywhere; a file must be there");
    }
    if (!fd) return file_error("cannot open " + path, errno);
    struct stat info {};
    if (::fstat(fd.get(), &info) != 0) return file_error("cannot stat " + path, errno);
    if (!S_ISREG(info.st_mode))
      return make_error(Errc::kInvalidArgument, path + " is not a regular file");
    return std::unique_ptr<IoFile>(std::make_unique<SystemFile>(std::move(fd), path, is_direct));
  }

  Result<void> rename(const std::string& from, const std::string& to) override {
    if (::rename(from.c_str(), to.c_str()) != 0)
      return file_error("cannot rename " + from + " to " + to, errno);
    return {};
  }

  Result<void> remove(const std::string& path) override {
    if (::unlink(path.c_str()) != 0) return file_error("cannot remove " + path, errno);
    return {};
  }

  Result<void> sync_directory_of(const std::string& path) override {
    const std::string parent = std::filesystem::path(path).parent_path().string();
    return sync_directory(parent.empty() ? "." : parent);
  }

 private:
  std::pair<UniqueFd, bool> open_fd(const std::string& path, int flags) const {
    if (is_direct_) {
      UniqueFd fd(::open(path.c_str(), flags | O_DIRECT | O_CLOEXEC, kNewFileMode));
      if (fd || errno != EINVAL) return {std::move(fd), true};
    }
    return {UniqueFd(::open(path.c_str(), flags | O_CLOEXEC, kNewFileMode)), false};
  }

  static Result<void> empty(int fd, const std::string& path, std::uint64_t reserve_bytes) {
    if (::ftruncate(fd, 0) != 0) return file_error("cannot empty " + path, errno);
    // A full disk shows before the work is done. Not every file system can reserve.
    if (reserve_bytes > 0 && ::fallocate(fd, 0, 0, static_cast<off_t>(reserve_bytes)) != 0 &&
        (errno == ENOSPC || errno == EDQUOT || errno == EFBIG)) {
      return file_error("cannot reserve " + std::to_string(reserve_bytes) + " bytes for " + path,
                        errno);
    }
    return {};
  }

  bool is_direct_;
  int follow_;
};

}  // namespace

Result<std::string> IoFile::version() const {
  const auto size = size_bytes();
  return size ? Result<std::string>(std::to_string(*size)) : size.error();
}

FileIo& system_io(IoMode mode) {
  static SystemIo buffered(IoMode::kBuffered);
  static SystemIo direct(IoMode::kDirect);
  static SystemIo no_links(IoMode::kNoLinks);
  switch (mode) {
    case IoMode::kDirect:
      return direct;
    case IoMode::kNoLinks:
      return no_links;
    case IoMode::kBuffered:
      break;
  }
  return buffered;
}

}  // namespace thaw::kvsnap
