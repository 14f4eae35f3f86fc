#include "kvsnap/whole_file.h"

#include <algorithm>
#include <memory>
#include <span>
#include <vector>

#include "kvsnap/container_writer.h"

namespace thaw::kvsnap {
namespace {

constexpr std::size_t kCopyBytes = std::size_t{1} << 20;

/// A file under its incomplete name; what is not committed goes.
class IncompleteFile {
 public:
  static Result<IncompleteFile> create(FileIo& io, const std::string& path, std::uint64_t bytes) {
    auto file = io.create(path + kIncompleteSuffix, bytes);
    if (!file) return std::move(file).error();
    return IncompleteFile(io, path, *std::move(file));
  }
  IncompleteFile(IncompleteFile&&) noexcept = default;
  IncompleteFile& operator=(IncompleteFile&&) = delete;
  ~IncompleteFile() {
    // Removed while it is still locked, so that nobody else's file goes.
    if (file_ != nullptr && !is_renamed_) static_cast<void>(io_->remove(path_ + kIncompleteSuffix));
  }

  IoFile& file() { return *file_; }
  Result<void> commit() {
    if (auto synced = file_->sync(); !synced) return synced;
    if (auto renamed = io_->rename(path_ + kIncompleteSuffix, path_); !renamed) return renamed;
    is_renamed_ = true;
    return io_->sync_directory_of(path_);
  }

 private:
  IncompleteFile(FileIo& io, std::string path, std::unique_ptr<IoFile> file)
      : io_(&io), path_(std::move(path)), file_(std::move(file)) {}

  FileIo* io_;
  std::string path_;
  std::unique_ptr<IoFile> file_;
  bool is_renamed_ = false;
};

std::string ended(const std::string& path) {
  return path + ": the file ended while it was read";
}

}  // namespace

Result<std::string> read_whole_file(FileIo& io, const std::string& path, std::size_t max_bytes) {
  const auto file = io.open(path);
  if (!file) return file.error();
  const auto size = (*file)->size_bytes();
  if (!size) return size.error();
  if (*size > max_bytes) {
    return make_error(Errc::kDataLoss, path + " has " + std::to_string(*size) + " bytes; at most " +
                                           std::to_string(max_bytes) +
                                           " are right for such a file");
  }
  std::string text(static_cast<std::size_t>(*size), '\0');
  const auto read = (*file)->read(std::as_writable_bytes(std::span(text.data(), text.size())), 0);
  if (!read) return read.error();
  if (*read != text.size()) return make_error(Errc::kDataLoss, ended(path));
  return text;
}

Result<void> write_whole_file(FileIo& io, const std::string& path, std::string_view bytes) {
  auto incomplete = IncompleteFile::create(io, path, 0);
  if (!incomplete) return incomplete.error();
  if (auto written =
          incomplete->file().write(std::as_bytes(std::span(bytes.data(), bytes.size())), 0);
      !written) {
    return written;
  }
  return incomplete->commit();
}

Result<void> copy_whole_file(FileIo& io, const std::string& from, const std::string& to) {
  const auto source = io.open(from);
  if (!source) return source.error();
  const auto size = (*source)->size_bytes();
  if (!size) return size.error();
  auto incomplete = IncompleteFile::create(io, to, 0);
  if (!incomplete) return incomplete.error();
  if (incomplete->file().share_bytes_of(**source)) return incomplete->commit();
  std::vector<std::byte> chunk(
      static_cast<std::size_t>(std::min<std::uint64_t>(*size, kCopyBytes)));
  for (std::uint64_t offset = 0; offset < *size; offset += chunk.size()) {
    const std::span<std::byte> part(chunk.data(), static_cast<std::size_t>(std::min<std::uint64_t>(
                                                      *size - offset, chunk.size())));
    const auto read = (*source)->read(part, offset);
    if (!read) return read.error();
    if (*read != part.size()) return make_error(Errc::kDataLoss, ended(from));
    if (auto written = incomplete->file().write(part, offset); !written) return written;
  }
  return incomplete->commit();
}

}  // namespace thaw::kvsnap
