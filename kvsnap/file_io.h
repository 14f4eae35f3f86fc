#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "engine/base/memory_map.h"
#include "engine/base/result.h"

namespace thaw::kvsnap {

/// An open file. Reads and writes of different ranges may run at once. Errors name the file.
class IoFile {
 public:
  virtual ~IoFile() = default;
  /// Addresses, offsets and sizes given to read() and write() must be multiples of this.
  virtual std::size_t alignment() const = 0;
  /// Writes all of `data`. Errors: kResourceExhausted where the disk is full, kIo.
  virtual Result<void> write(std::span<const std::byte> data, std::uint64_t offset) = 0;
  /// Bytes read: fewer than asked for only at the end of the file.
  virtual Result<std::size_t> read(std::span<std::byte> out, std::uint64_t offset) const = 0;
  virtual Result<std::uint64_t> size_bytes() const = 0;
  /// Cuts the file, or has it end in zeros.
  virtual Result<void> set_size(std::uint64_t size_bytes) = 0;
  /// Returns once the disk has everything that was written.
  virtual Result<void> sync() = 0;
  /// The whole file, read-only.
  virtual Result<Mapping> map() const = 0;
  /// Whether this empty file now has the bytes of `source`, sharing its place on the disk until
  /// either is written: some file systems can (XFS, btrfs), between files of theirs.
  virtual bool share_bytes_of(const IoFile& source) {
    static_cast<void>(source);
    return false;
  }
  /// Changes when the file's bytes do, as far as the file system tells.
  virtual Result<std::string> version() const;
};

/// The calls that container files need of a file system, and all that they make: tests put one in
/// place that loses power. Thread-safe.
class FileIo {
 public:
  virtual ~FileIo() = default;
  /// An empty file for writing, with room for `reserve_bytes` where the file system can reserve.
  /// Nobody else creates it until it is closed or renamed. Errors: kUnavailable while another
  /// process does, kResourceExhausted where the disk is full, kIo.
  virtual Result<std::unique_ptr<IoFile>> create(const std::string& path,
                                                 std::uint64_t reserve_bytes) = 0;
  /// A regular file for reading. Errors: kNotFound, kInvalidArgument, kIo.
  virtual Result<std::unique_ptr<IoFile>> open(const std::string& path) = 0;
  virtual Result<void> rename(const std::string& from, const std::string& to) = 0;
  virtual Result<void> remove(const std::string& path) = 0;
  /// Makes the names in the directory of `path` survive a crash.
  virtual Result<void> sync_directory_of(const std::string& path) = 0;
};

enum class IoMode {
  kBuffered,  ///< through the page cache
  /// Past it (O_DIRECT) where the file system can, else through it. Right for what is written and
  /// must be on the disk: fsync of 1 GiB through the cache took 3.5 s, past it 0.5 s (ext4 on a
  /// virtual NVMe disk). Two threads with pwrite fill such a disk as io_uring does.
  kDirect,
  /// kBuffered that opens no symbolic link: for names inside of a directory that came from others.
  kNoLinks,
};

/// The operating system's files; lives as long as the process.
FileIo& system_io(IoMode mode);

}  // namespace thaw::kvsnap
