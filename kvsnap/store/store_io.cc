#include "kvsnap/store/store_io.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <utility>

#include "engine/base/unique_fd.h"

namespace thaw::kvsnap {
namespace {

constexpr const char* kScratchSuffix = ".upload";

/// An object for reading.
class ObjectFile final : public IoFile {
 public:
  explicit ObjectFile(std::unique_ptr<StoredObject> object) : object_(std::move(object)) {}

  std::size_t alignment() const override { return 1; }
  Result<void> write(std::span<const std::byte>, std::uint64_t) override { return read_only(); }
  Result<std::size_t> read(std::span<std::byte> out, std::uint64_t offset) const override {
    const std::uint64_t size = object_->info().size_bytes;
    const std::uint64_t left = offset < size ? size - offset : 0;
    out = out.first(static_cast<std::size_t>(std::min<std::uint64_t>(out.size(), left)));
    if (out.empty()) return std::size_t{0};
    if (auto done = object_->read(offset, out); !done) return std::move(done).error();
    return out.size();
  }
  Result<std::uint64_t> size_bytes() const override { return object_->info().size_bytes; }
  Result<void> set_size(std::uint64_t) override { return read_only(); }
  Result<void> sync() override { return {}; }
  Result<Mapping> map() const override {
    return make_error(Errc::kUnsupported, object_->info().url + " cannot be mapped");
  }
  Result<std::string> version() const override { return object_->info().version; }

 private:
  Error read_only() const {
    return make_error(Errc::kUnsupported, object_->info().url + " is open for reading only");
  }

  std::unique_ptr<StoredObject> object_;
};

/// Whoever writes a scratch file has locked it.
void remove_abandoned(const std::string& directory) {
  std::error_code failed;
  for (const auto& entry : std::filesystem::directory_iterator(directory, failed)) {
    if (!entry.path().filename().string().ends_with(kScratchSuffix)) continue;
    const UniqueFd fd(::open(entry.path().c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC));
    if (fd && ::flock(fd.get(), LOCK_EX | LOCK_NB) == 0) ::unlink(entry.path().c_str());
  }
}

}  // namespace

StoreIo::StoreIo(Store& store, std::string scratch_directory)
    : store_(&store), scratch_directory_(std::move(scratch_directory)) {}

Result<std::unique_ptr<IoFile>> StoreIo::open(const std::string& url) {
  auto object = store_->open(url);
  if (!object) return std::move(object).error();
  return std::unique_ptr<IoFile>(std::make_unique<ObjectFile>(*std::move(object)));
}

Result<std::unique_ptr<IoFile>> StoreIo::create(const std::string& url,
                                                std::uint64_t reserve_bytes) {
  std::error_code failed;
  std::filesystem::create_directories(scratch_directory_, failed);
  if (failed) return io_error("cannot make " + scratch_directory_, failed.value());
  std::string path;
  {
    const std::lock_guard lock(mutex_);
    if (scratch_.contains(url))
      return make_error(Errc::kUnavailable, url + " is being written already");
    if (next_ == 0) remove_abandoned(scratch_directory_);
    path = scratch_directory_ + "/" + std::to_string(::getpid()) + "-" + std::to_string(next_++) +
           kScratchSuffix;
    scratch_.emplace(url, path);
  }
  auto file = system_io(IoMode::kDirect).create(path, reserve_bytes);
  if (!file) {
    const std::lock_guard lock(mutex_);
    scratch_.erase(url);
  }
  return file;
}

Result<std::string> StoreIo::take(const std::string& url) {
  const std::lock_guard lock(mutex_);
  const auto found = scratch_.find(url);
  if (found == scratch_.end())
    return make_error(Errc::kUnsupported, url + " was not created by this program");
  std::string path = found->second;
  scratch_.erase(found);
  return path;
}

Result<void> StoreIo::rename(const std::string& from, const std::string& to) {
  const auto path = take(from);
  if (!path) return path.error();
  const auto put = store_->put(to, *path);
  static_cast<void>(system_io(IoMode::kBuffered).remove(*path));
  return put ? Result<void>() : put.error();
}

Result<void> StoreIo::remove(const std::string& url) {
  const auto path = take(url);
  if (!path) return path.error();
  return system_io(IoMode::kBuffered).remove(*path);
}

}  // namespace thaw::kvsnap
