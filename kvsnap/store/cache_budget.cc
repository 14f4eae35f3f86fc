#include "kvsnap/store/cache_budget.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <ctime>
#include <filesystem>
#include <vector>

#include "engine/base/unique_fd.h"

namespace thaw::kvsnap {
namespace {

namespace fs = std::filesystem;

/// Another process may have been handed it and not have opened it yet.
constexpr std::int64_t kJustUsedSeconds = 60;
constexpr std::size_t kFolderDigits = 16;  // of the folders that ObjectCache makes

struct Entry {
  std::string path;
  std::uint64_t bytes = 0;
  std::int64_t used = 0;  ///< seconds since the epoch
};

std::string stamp_of(const std::string& path) {
  return path + std::string(kCacheStampSuffix);
}

/// Copies by the time of their stamps, what is incomplete by its own.
std::vector<Entry> entries_of(const std::string& directory) {
  std::vector<Entry> entries;
  std::error_code failed;
  for (const auto& folder : fs::directory_iterator(directory, failed)) {
    if (folder.path().filename().string().size() != kFolderDigits) continue;
    std::error_code unreadable;
    for (const auto& file : fs::directory_iterator(folder.path(), unreadable)) {
      const std::string path = file.path().string();
      struct stat info {};
      if (path.ends_with(kCacheStampSuffix) || ::lstat(path.c_str(), &info) != 0 ||
          !S_ISREG(info.st_mode)) {
        continue;
      }
      struct stat stamp {};
      const bool has_stamp = ::lstat(stamp_of(path).c_str(), &stamp) == 0;
      // Room that was reserved and not written to is taken all the same.
      const auto held = static_cast<std::uint64_t>(info.st_blocks) * 512;
      entries.push_back({path, std::max(static_cast<std::uint64_t>(info.st_size), held),
                         has_stamp ? stamp.st_mtim.tv_sec : info.st_mtim.tv_sec});
    }
  }
  return entries;
}

bool is_being_filled(const std::string& path) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC));
  return fd && ::flock(fd.get(), LOCK_EX | LOCK_NB) != 0;
}

}  // namespace

void note_cache_use(const std::string& path) {
  static_cast<void>(::utimensat(AT_FDCWD, stamp_of(path).c_str(), nullptr, 0));
}

std::uint64_t keep_cache_within(const std::string& directory, std::uint64_t max_bytes,
                                std::uint64_t more_bytes, const std::set<std::string>& keep) {
  std::vector<Entry> entries = entries_of(directory);
  std::uint64_t used = more_bytes;
  for (const Entry& entry : entries)
    used += entry.bytes;
  std::ranges::sort(entries, [](const Entry& a, const Entry& b) {
    return a.used != b.used ? a.used < b.used : a.path < b.path;
  });
  const std::int64_t now = std::time(nullptr);
  std::uint64_t gone = 0;
  for (const Entry& entry : entries) {
    if (used - gone <= max_bytes) break;
    if (keep.contains(entry.path) || now - entry.used < kJustUsedSeconds ||
        is_being_filled(entry.path)) {
      continue;
    }
    // The stamp first: without one nobody takes the copy for good.
    ::unlink(stamp_of(entry.path).c_str());
    if (::unlink(entry.path.c_str()) == 0) gone += entry.bytes;
  }
  return gone;
}

}  // namespace thaw::kvsnap
