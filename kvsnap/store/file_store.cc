#include "kvsnap/store/file_store.h"

#include <algorithm>
#include <utility>

#include "kvsnap/aligned_buffer.h"
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

Result<std::unique_ptr<StoredObject>> FileStore::open(const std::string& url) {
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
  if (auto copied = copy_whole_file(*io_, path, url); !copied) return std::move(copied).error();
  const auto object = open(url);
  if (!object) return object.error();
  return (*object)->info();
}

}  // namespace thaw::kvsnap
