#include "kvsnap/store/object_cache.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <utility>

#include "engine/base/file.h"
#include "engine/base/hash.h"
#include "engine/base/unique_fd.h"
#include "kvsnap/store/cache_budget.h"

namespace thaw::kvsnap {
namespace {

constexpr std::size_t kMaxNameBytes = 200;  // leaves room for suffixes below NAME_MAX
constexpr std::size_t kHashDigits = 16;
constexpr mode_t kFileMode = 0644;

Error disk_error(const std::string& what, int error_number) {
  Error error = io_error(what, error_number);
  if (error_number == ENOSPC || error_number == EDQUOT || error_number == EFBIG)
    error.code = Errc::kResourceExhausted;
  return error;
}

std::string short_hash(const std::string& text) {
  return hash_text(text).to_hex().substr(0, kHashDigits);
}

/// Changes when the machine starts: after a power cut nobody knows how much of a file that was not
/// synced is there.
std::string boot_id() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string id;
  std::getline(file, id);
  return id;
}

/// What stands beside a copy and says which object it is of. The inode ties it to that copy: of two
/// fetches at once, one may have put its copy, the other its stamp.
std::string stamp_of(const ObjectInfo& info, ino_t inode) {
  return info.version + "\n" + std::to_string(info.size_bytes) + "\n" + std::to_string(inode) +
         "\n";
}

std::string read_stamp(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text;
  std::getline(file, text, '\0');
  return text;
}

bool is_current(const std::string& path, const std::string& stamp_path, const ObjectInfo& info) {
  struct stat copy {};
  return ::stat(path.c_str(), &copy) == 0 && S_ISREG(copy.st_mode) &&
         static_cast<std::uint64_t>(copy.st_size) == info.size_bytes &&
         read_stamp(stamp_path) == stamp_of(info, copy.st_ino);
}

/// A file that is being filled, locked by whoever fills it. Its size is how much is right.
class Partial {
 public:
  /// Nothing where another process has it. Errors: kIo.
  static Result<std::unique_ptr<Partial>> open(const std::string& path) {
    UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, kFileMode));
    if (!fd) return disk_error("cannot create " + path, errno);
    struct stat opened {};
    struct stat named {};
    if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0 || ::fstat(fd.get(), &opened) != 0 ||
        ::lstat(path.c_str(), &named) != 0 || opened.st_ino != named.st_ino) {
      return std::unique_ptr<Partial>();
    }
    return std::make_unique<Partial>(std::move(fd), path, opened);
  }
  Partial(UniqueFd fd, std::string path, const struct stat& opened)
      : fd_(std::move(fd)),
        path_(std::move(path)),
        inode_(opened.st_ino),
        size_bytes_(static_cast<std::uint64_t>(opened.st_size)) {}

  const std::string& path() const { return path_; }
  ino_t inode() const { return inode_; }
  std::uint64_t size_bytes() const { return size_bytes_; }

  Result<void> append(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const ssize_t done =
          ::pwrite(fd_.get(), bytes.data(), bytes.size(), static_cast<off_t>(size_bytes_));
      if (done < 0 && errno == EINTR) continue;
      if (done <= 0) return disk_error("cannot write " + path_, done < 0 ? errno : ENOSPC);
      size_bytes_ += static_cast<std::uint64_t>(done);
      bytes = bytes.subspan(static_cast<std::size_t>(done));
    }
    return {};
  }
  Result<void> reserve(std::uint64_t total_bytes) {
    // A full disk shows before the work is done. Not every file system can reserve.
    if (total_bytes > size_bytes_ &&
        ::fallocate(fd_.get(), FALLOC_FL_KEEP_SIZE, static_cast<off_t>(size_bytes_),
                    static_cast<off_t>(total_bytes - size_bytes_)) != 0 &&
        (errno == ENOSPC || errno == EDQUOT || errno == EFBIG)) {
      return disk_error(
          "cannot reserve " + std::to_string(total_bytes - size_bytes_) + " bytes for " + path_,
          errno);
    }
    return {};
  }
  Result<void> restart() {
    if (::ftruncate(fd_.get(), 0) != 0) return disk_error("cannot empty " + path_, errno);
    size_bytes_ = 0;
    return {};
  }
  Result<void> finish(const std::string& name) {
    if (::fsync(fd_.get()) != 0) return disk_error("cannot sync " + path_, errno);
    if (::rename(path_.c_str(), name.c_str()) != 0)
      return disk_error("cannot rename " + path_ + " to " + name, errno);
    return {};
  }
  void remove() const { ::unlink(path_.c_str()); }

 private:
  UniqueFd fd_;
  std::string path_;
  ino_t inode_;
  std::uint64_t size_bytes_;
};

/// Removes what fetches of other versions of `path` left, unless one is at it.
void remove_stale_partials(const std::string& path, const std::string& ours) {
  std::error_code failed;
  const std::filesystem::path whole(path);
  for (const auto& entry : std::filesystem::directory_iterator(whole.parent_path(), failed)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(whole.filename().string() + ".") ||
        !name.ends_with(kCachePartialSuffix) || entry.path().string() == ours) {
      continue;
    }
    if (const auto stale = Partial::open(entry.path().string()); stale && *stale)
      (*stale)->remove();
  }
}

/// The partial file of this version, or, where another process fills that, one of our own.
Result<std::unique_ptr<Partial>> open_partial(const std::string& path, const ObjectInfo& info) {
  const std::string stem = path + "." + short_hash(info.version + "\n" + boot_id());
  auto partial = Partial::open(stem + std::string(kCachePartialSuffix));
  if (!partial || *partial) return partial;
  partial =
      Partial::open(stem + "." + std::to_string(::getpid()) + std::string(kCachePartialSuffix));
  if (!partial || *partial) return partial;
  return make_error(Errc::kUnavailable, path + " is being fetched by two others already");
}

Result<void> fill(Partial& partial, const StoredObject& object) {
  const ObjectInfo& info = object.info();
  if (partial.size_bytes() > info.size_bytes) {
    if (auto emptied = partial.restart(); !emptied) return emptied;
  }
  if (auto reserved = partial.reserve(info.size_bytes); !reserved) return reserved;
  const std::uint64_t have = partial.size_bytes();
  if (have < info.size_bytes) {
    auto streamed = object.stream(
        have, info.size_bytes - have,
        [&partial](std::span<const std::byte> bytes) { return partial.append(bytes); });
    if (!streamed) return streamed;
  }
  if (partial.size_bytes() == info.size_bytes) return {};
  return make_error(Errc::kDataLoss, info.url + ": " + std::to_string(partial.size_bytes()) +
                                         " bytes came of " + std::to_string(info.size_bytes));
}

}  // namespace

Result<std::string> ObjectCache::path_of(const Store& store, const std::string& url) const {
  const std::size_t slash = url.rfind('/');
  const std::string name = slash == std::string::npos ? url : url.substr(slash + 1);
  if (name.empty() || name == "." || name == ".." || name.size() > kMaxNameBytes ||
      name.find('\0') != std::string::npos) {
    return make_error(Errc::kInvalidArgument,
                      url + ": its last part must be a file name of at most " +
                          std::to_string(kMaxNameBytes) + " bytes");
  }
  const std::string folder = url.substr(0, url.size() - name.size());
  return directory_ + "/" + short_hash(store.name() + "\n" + folder) + "/" + name;
}

Result<std::string> ObjectCache::fetch(Store& store, const std::string& url) {
  auto path = path_of(store, url);
  if (!path) return path;
  const auto object = store.open(url);
  if (!object) return object.error();
  const ObjectInfo& info = (*object)->info();
  if (is_current(*path, *path + std::string(kCacheStampSuffix), info)) {
    note_cache_use(*path);
    given_out_.insert(*path);
    make_room(0);
    return path;
  }
  // What is there of it already counts twice, which is on the safe side.
  given_out_.insert(*path);
  make_room(info.size_bytes);
  if (auto brought = bring(**object, *path); !brought) return std::move(brought).error();
  return path;
}

void ObjectCache::make_room(std::uint64_t bytes) {
  if (max_bytes_ != 0) keep_cache_within(directory_, max_bytes_, bytes, given_out_);
}

Result<void> ObjectCache::bring(const StoredObject& object, const std::string& path) {
  const ObjectInfo& info = object.info();
  const std::string stamp_path = path + std::string(kCacheStampSuffix);
  std::error_code failed;
  const std::string folder = std::filesystem::path(path).parent_path().string();
  std::filesystem::create_directories(folder, failed);
  if (failed) return disk_error("cannot make " + folder, failed.value());
  auto opened = open_partial(path, info);
  if (!opened) return std::move(opened).error();
  Partial& partial = **opened;
  remove_stale_partials(path, partial.path());
  if (auto filled = fill(partial, object); !filled) {
    // What the network broke off goes on later; on a full disk it would be in everybody's way.
    const Errc code = filled.error().code;
    if (code == Errc::kResourceExhausted || code == Errc::kDataLoss) partial.remove();
    return std::move(filled).error();
  }
  // Without a stamp there is no copy: so no crash can leave the old one's beside the new bytes.
  std::filesystem::remove(stamp_path, failed);
  if (auto finished = partial.finish(path); !finished) return std::move(finished).error();
  if (auto synced = sync_directory(folder); !synced) return std::move(synced).error();
  return replace_file(stamp_path, stamp_of(info, partial.inode()));
}

}  // namespace thaw::kvsnap
