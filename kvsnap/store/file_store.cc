#include "kvsnap/store/file_store.h"

#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <utility>

#include "kvsnap/aligned_buffer.h"
#include "kvsnap/container_writer.h"
#include "kvsnap/whole_file.h"

namespace thaw::kvsnap {
namespace {

constexpr std::size_t kChunkBytes = std::size_t{1} << 20;

/// Reads any range of a file that may take aligned reads only.
Result<void> stream_file(const IoFile& file, const std::string& path, std::uint64_t offset,
                         std::uint64_t size_bytes, const ByteSink& sink) {
  const AlignedBuffer buffer(kChunkBytes);
  const std::uint64_t end = offset + size_bytes;
  while (offset < end) {
    const std::uint64_t start = offset / file.alignment() * file.alignment();
    const auto read = file.read(buffer.bytes(), start);
    if (!read) return read.error();
    const std::uint64_t skip = offset - start;
    if (*read <= skip)
      return make_error(Errc::kDataLoss, path + ": the file ended while it was read");
    const std::uint64_t taken = std::min(*read - skip, end - offset);
    const auto bytes =
        buffer.bytes().subspan(static_cast<std::size_t>(skip), static_cast<std::size_t>(taken));
    if (auto put = sink(bytes); !put) return put;
    offset += taken;
  }
  return {};
}

class FileObject final : public StoredObject {
 public:
  FileObject(ObjectInfo info, std::unique_ptr<IoFile> file)
      : StoredObject(std::move(info)), file_(std::move(file)) {}

  Result<void> stream(std::uint64_t offset, std::uint64_t size_bytes,
                      const ByteSink& sink) const override {
    const auto version = file_->version();
    if (!version) return version.error();
    if (*version != info().version)
      return make_error(Errc::kDataLoss, info().url + " was written to while it was read");
    return stream_file(*file_, info().url, offset, size_bytes, sink);
  }

 private:
  std::unique_ptr<IoFile> file_;
};

}  // namespace

Result<void> FileStore::check() const {
  if (!is_stopped_) return {};
  return make_error(Errc::kCancelled, "the store was stopped");
}

Result<std::unique_ptr<StoredObject>> FileStore::open(const std::string& url) {
  if (auto checked = check(); !checked) return std::move(checked).error();
  auto file = io_->open(url);
  if (!file) return std::move(file).error();
  const auto size = (*file)->size_bytes();
  if (!size) return size.error();
  auto version = (*file)->version();
  if (!version) return std::move(version).error();
  return std::unique_ptr<StoredObject>(
      std::make_unique<FileObject>(ObjectInfo{url, *size, *std::move(version)}, *std::move(file)));
}

Result<ObjectInfo> FileStore::put(const std::string& url, const std::string& path) {
  if (auto checked = check(); !checked) return std::move(checked).error();
  if (auto copied = copy_whole_file(*io_, path, url); !copied) return std::move(copied).error();
  const auto object = open(url);
  if (!object) return object.error();
  return (*object)->info();
}

Result<std::vector<ListedObject>> FileStore::list(const std::string& folder,
                                                  std::size_t max_objects) {
  if (auto checked = check(); !checked) return std::move(checked).error();
  namespace fs = std::filesystem;
  std::vector<ListedObject> objects;
  std::error_code failed;
  for (auto entry = fs::recursive_directory_iterator(folder, failed);
       !failed && entry != fs::recursive_directory_iterator(); entry.increment(failed)) {
    const std::string path = entry->path().string();
    struct stat info {};
    if (path.ends_with(kIncompleteSuffix) || ::lstat(path.c_str(), &info) != 0 ||
        !S_ISREG(info.st_mode)) {
      continue;
    }
    objects.push_back({path.substr(folder.size()), static_cast<std::uint64_t>(info.st_size),
                       info.st_mtim.tv_sec});
  }
  if (failed && failed != std::errc::no_such_file_or_directory)
    return io_error("cannot list " + folder, failed.value());
  std::ranges::sort(objects, {}, &ListedObject::name);
  if (objects.size() > max_objects) objects.resize(max_objects);
  return objects;
}

Result<void> FileStore::remove(const std::string& url) {
  if (auto checked = check(); !checked) return checked;
  auto removed = io_->remove(url);
  if (removed) return removed;
  const auto there = io_->open(url);
  if (!there && there.error().code == Errc::kNotFound) return {};
  return removed;
}

}  // namespace thaw::kvsnap
